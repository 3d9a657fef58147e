"""EoMT on DINOv2 ViT-L with registers run with patches of 16, ADE20K.

    python tools/train.py configs/semantic/eomt_dinov2_l_ade20k.py

Aims at 58.4 mIoU, single scale (tue-mps/eomt, model zoo, DINOv2). Recipe (tue-mps/eomt; Kerssies et al. 2025, arXiv
2503.19108): 100 queries in the last four blocks; AdamW 1e-4 with layer decay 0.8 from the last block on, weight decay
0.05 on every parameter, gradients clipped at 0.01, polynomial decay 0.9 over 31 epochs of 16 crops; queries and heads
warm up for 500 steps while the ViT has a rate of 0, then the ViT for 1000 (configs/dinov2/ade20k/semantic/
eomt_large_512.yaml, training/lightning_module.py, main.py). Images are jittered in colour, mirrored, resized to fit
inside 0.5 ... 2.0 of 512 x 512, padded with black and cropped (datasets/transforms.py); masked attention falls to
nothing block after block between 1/6 and 5/6 of the run. Scores of overlapping windows are averaged.

Differs from the source in: unlabelled pixels do not count in the losses of masks.

Cost: about 15 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k_jitter import *
    from .._base_.eomt import *
    from .._base_.runtime import *

from vitdense.train.hooks.mask_annealing import MaskAnnealingHook

schedule = dict(
    max_iters=39_120, val_interval=3_912, warmup_iters=500, backbone_warmup_iters=1_000, decay='poly', power=0.9
)
custom_hooks = [dict(type=MaskAnnealingHook)]
checkpoint.update(interval=3_912)
