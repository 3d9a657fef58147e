"""A linear classifier on a frozen DINOv3 ViT-L/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_dinov3_l_imagenet.py

No published number on the validation labels; on those of ImageNet-ReaL it is 90.2 (DINOv3 model card).
The recipe is that of the ViT-S config.

Cost: about 22 hours on one 40 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov3_s_imagenet import *

model.network.backbone.name = 'vit_large_patch16_dinov3.lvd1689m'
