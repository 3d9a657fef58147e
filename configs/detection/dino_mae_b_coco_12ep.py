"""DINO on the simple feature pyramid of a MAE ViT-B/16, COCO, 12 epochs.

    python tools/train.py configs/detection/dino_mae_b_coco_12ep.py

Aims at 50.2 AP (detrex, pull request 138). Recipe (IDEA-Research/detrex, projects/dino/configs/models/dino_vitdet.py
and dino_r50.py, dino-vitdet/dino_vitdet_base_4scale_12ep.py, configs/common): ViTDet's backbone (windows of 14 x 14
cells, blocks 2, 5, 8 and 11 global, no class token, no final norm, drop path 0.1) and its pyramid at the strides 8, 16,
32 and 64, each level through a 1x1 convolution and a group norm; 900 queries, 100 of denoising, one class and one box
predictor for each decoder layer; AdamW 1e-4, ViT and pyramid at a tenth of it, weight decay 1e-4 but none for norms,
gradients clipped at 0.1, 90 000 steps of 16 images with DETR's sizes 480 ... 800 and crops, not padded to a square, a
tenth of the rate after 82 500; 300 detections of an image.

Differs from the source in: the ViT has no decomposed relative positions (MAE's weights have none either), the box that
a decoder layer refines is predicted behind the decoder's norm, and queries encode their boxes in coordinates of the
image, not of the padded batch, so that a padded batch gives the outputs of the single image.

Cost: about 20 hours on eight 80 GB GPUs (`torchrun --nproc_per_node 8`: two images each).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco import *
    from .._base_.dino import *
    from .._base_.runtime import *

schedule = dict(max_iters=90_000, val_interval=5_000, decay='step', milestones=(82_500,), gamma=0.1)
checkpoint.update(interval=5_000, best='det/AP')
