"""Boxes and a segmentation map from one pass of a frozen DINOv3 ViT-B/16, trained on COCO and ADE20K together.

    python tools/train.py configs/multitask/dino_linear_frozen_dinov3_b_coco_ade20k.py

No published number. Recipe: that of DINOv2 ViT-S, with a frozen ViT.

Cost: not measured; less than fine-tuning, whose backward pass through the ViT it leaves out.
"""

from mmengine.config import read_base

with read_base():
    from .dino_linear_dinov2_s_coco_ade20k import *

model.network.backbone.update(name='vit_base_patch16_dinov3.lvd1689m', patch_size=None, frozen=True, drop_path=0.0)
