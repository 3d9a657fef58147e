"""Linear segmentation on the last layer of a fine-tuned ViT-Ti/16, CamVid: what LoRA is compared with.

    python tools/train.py configs/semantic/linear_finetuned_vit_ti_camvid.py

Aims at 0.55 mIoU on the 101 validation images in under 40 minutes on 2 CPU cores. There is no published number.
"""

from mmengine.config import read_base

with read_base():
    from .linear_vit_ti_camvid import *

model.network.backbone.update(frozen=False, drop_path=0.1)
optim_wrapper.optimizer.update(lr=3e-4, weight_decay=0.05)
optim_wrapper.groups.update(decay=0.8, head_lr=15, no_decay=('norm', 'bias', 'layer_scale', 'pos_embed', 'cls_token'))
schedule.update(warmup_iters=100)
