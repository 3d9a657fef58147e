"""A linear classifier on a frozen DINOv3 ViT-S/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_dinov3_s_imagenet.py

No published number on the validation labels; the model card has those of ImageNet-ReaL. The recipe
is that of the DINOv2 leaf with the class token of the last layer alone.

Cost: about 6 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov2_s_imagenet import *

model.network.backbone.name = 'vit_small_patch16_dinov3.lvd1689m'
model.network.branches.cls.adapter.update(layers=(-1,))
model.network.branches.cls.head.update(pool='token')
