"""DINO on the simple feature pyramid of a MAE ViT-L/16, COCO, 12 epochs.

    python tools/train.py configs/detection/dino_mae_l_coco_12ep.py

Aims at 52.9 AP (detrex, pull request 138). Recipe: that of ViT-B with blocks 5, 11, 17 and 23 global, drop path 0.4,
250 steps of warm-up, and a tenth of the rate after 72 000 (dino_vitdet_large_4scale_12ep.py: milestones 300 000 of
375 000, in shares of the run).

Cost: about 40 hours on eight 80 GB GPUs (`torchrun --nproc_per_node 8`: two images each); the ViT's activations are
computed twice to save memory.
"""

from mmengine.config import read_base

with read_base():
    from .dino_mae_b_coco_12ep import *

model.network.backbone.update(name='vit_large_patch16_224.mae', drop_path=0.4, checkpointing=True)
model.network.backbone.windows.update(global_blocks=(5, 11, 17, 23))
schedule.update(milestones=(72_000,), warmup_iters=250, warmup_ratio=1e-3)
