"""Boxes, a segmentation map and a class from one pass of a frozen ViT-Ti/16, trained on three small data sets.

    python tools/train.py configs/multitask/three_tasks_frozen_vit_ti_small.py

No published number. Recipe: that of the fine-tuned ViT, with a frozen ViT: each task trains as it would alone.

Cost: not measured; less than fine-tuning, which takes about an hour and a half of one CPU core.
"""

from mmengine.config import read_base

with read_base():
    from .three_tasks_vit_ti_small import *

model.network.backbone.update(frozen=True)
optim_wrapper.groups.update(lr_of=dict(sem=10))
optim_wrapper.clip_grad = None
