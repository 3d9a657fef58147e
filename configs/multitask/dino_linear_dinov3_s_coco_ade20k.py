"""Boxes and a segmentation map from one pass of a fine-tuned DINOv3 ViT-S/16, trained on COCO and ADE20K together.

    python tools/train.py configs/multitask/dino_linear_dinov3_s_coco_ade20k.py

No published number. Recipe: that of DINOv2 ViT-S.

Cost: not measured; about that of DINOv2 ViT-S.
"""

from mmengine.config import read_base

with read_base():
    from .dino_linear_dinov2_s_coco_ade20k import *

model.network.backbone.update(name='vit_small_patch16_dinov3.lvd1689m', patch_size=None)
