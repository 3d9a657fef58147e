"""A linear classifier on a frozen DINOv2 ViT-L/14, ImageNet-1k.

    python tools/train.py configs/classification/linear_dinov2_l_imagenet.py

Aims at 86.3 top-1 (facebookresearch/dinov2, README.md), the best of 52 classifiers. The recipe is that of the ViT-S
config.

Cost: about 20 hours on one 40 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov2_s_imagenet import *

model.network.backbone.name = 'vit_large_patch14_dinov2.lvd142m'
model.network.branches.cls.adapter.update(layers=(20, 21, 22, 23))
