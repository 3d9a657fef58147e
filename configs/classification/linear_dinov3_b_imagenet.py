"""A linear classifier on a frozen DINOv3 ViT-B/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_dinov3_b_imagenet.py

No published number on the validation labels; the model card has those of ImageNet-ReaL.
The recipe is that of the ViT-S config.

Cost: about 9 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov3_s_imagenet import *

model.network.backbone.name = 'vit_base_patch16_dinov3.lvd1689m'
