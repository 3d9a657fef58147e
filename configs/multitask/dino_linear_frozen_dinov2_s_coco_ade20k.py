"""Boxes and a segmentation map from one pass of a frozen DINOv2 ViT-S, trained on COCO and ADE20K together.

    python tools/train.py configs/multitask/dino_linear_frozen_dinov2_s_coco_ade20k.py

No published number. Recipe: that of the fine-tuned ViT, with a frozen ViT: the tasks do not influence each other, and
further heads can be added later.

Cost: not measured; less than fine-tuning, whose backward pass through the ViT it leaves out.
"""

from mmengine.config import read_base

with read_base():
    from .dino_linear_dinov2_s_coco_ade20k import *

model.network.backbone.update(frozen=True, drop_path=0.0)
