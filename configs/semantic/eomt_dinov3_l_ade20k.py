"""EoMT on DINOv3 ViT-L/16, ADE20K.

    python tools/train.py configs/semantic/eomt_dinov3_l_ade20k.py

Aims at 59.5 mIoU, single scale (tue-mps/eomt, model zoo, DINOv3). The recipe is that of the DINOv2 config, but: AdamW
2e-4 for every block with no layer decay, 16 epochs, warm-up 2000 and 3000 steps, masked attention that falls to nothing
between the steps 0 - 3000, 6520 - 9780, 9780 - 13040 and 13040 - 16300 (configs/dinov3/ade20k/semantic/
eomt_large_512.yaml), and in training rotations of coordinates rescaled by up to 2, and queries and values with biases,
both as in the DINOv3 of transformers that the authors wrap. The `lr_mult: 0.1` of that file has no effect in the
released code: its branch in training/lightning_module.py, configure_optimizers, is never taken.

Cost: about 7 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k_jitter import *
    from .._base_.eomt import *
    from .._base_.runtime import *

from vitdense.train.hooks.mask_annealing import MaskAnnealingHook

model.network.backbone.update(
    name='vit_large_patch16_dinov3_qkvb.lvd1689m', patch_size=None, timm_args=dict(rope_rescale_coords=2.0)
)
optim_wrapper.optimizer.update(lr=2e-4)
optim_wrapper.groups.update(decay=1.0, full_blocks=4)
schedule = dict(
    max_iters=20_200, val_interval=2_525, warmup_iters=2_000, backbone_warmup_iters=3_000, decay='poly', power=0.9
)
custom_hooks = [
    dict(
        type=MaskAnnealingHook,
        begin=(0.0, 6_520 / 20_200, 9_780 / 20_200, 13_040 / 20_200),
        end=(3_000 / 20_200, 9_780 / 20_200, 13_040 / 20_200, 16_300 / 20_200),
    )
]
checkpoint.update(interval=2_525)
