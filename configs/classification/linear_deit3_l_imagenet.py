"""A linear classifier on a frozen DeiT III ViT-L/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_deit3_l_imagenet.py

No published number for a classifier trained anew; the checkpoint's own, on the same tokens, has 84.9 top-1
(facebookresearch/deit, README_revenge.md), and original_deit3_l_imagenet.py evaluates it. The recipe is
that of the ViT-S config.

Cost: about 20 hours on one 40 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_deit3_s_imagenet import *

model.network.backbone.name = 'deit3_large_patch16_224.fb_in1k'
