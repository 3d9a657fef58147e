"""A linear classifier on a frozen DeiT III ViT-S/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_deit3_s_imagenet.py

No published number for a classifier trained anew; the checkpoint's own, on the same tokens, has 81.4 top-1
(facebookresearch/deit, README_revenge.md), and original_deit3_s_imagenet.py evaluates it. The recipe is
that of the DINOv3 leaf.

Cost: about 5 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov3_s_imagenet import *

model.network.backbone.name = 'deit3_small_patch16_224.fb_in1k'
val_dataloader.dataset.transforms.crop.update(crop_pct=1.0)
