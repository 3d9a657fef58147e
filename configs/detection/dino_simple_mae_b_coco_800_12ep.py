"""DINO on the simple feature pyramid of a MAE ViT-B/16, COCO, 12 epochs.

    python tools/train.py configs/detection/dino_simple_mae_b_coco_800_12ep.py

Aims at 50.2 AP (detrex, pull request 138). Recipe: ViTDet's backbone (windows of 14 x 14 cells, blocks 2, 5, 8 and 11
global, drop path 0.1) and its pyramid of strides 4 ... 64; 900 queries, 100 of denoising; AdamW 1e-4, ViT at a tenth
of it, weight decay 1e-4 but none for norms, gradients clipped at 0.1, 90 000 steps of 16 pictures with DETR's sizes
480 ... 800, a tenth of the rate after 82 500. Other than there, the ViT has no relative positions of its own and
pictures keep their size instead of being filled up to 1024 x 1024.

Cost: about 20 hours on eight 80 GB GPUs (two pictures each).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco import *
    from .._base_.dino import *
    from .._base_.runtime import *

schedule = dict(max_iters=90_000, val_interval=5_000, decay='step', milestones=(82_500,), gamma=0.1)
checkpoint.update(interval=5_000, best='det/AP')
