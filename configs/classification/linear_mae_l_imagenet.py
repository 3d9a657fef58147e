"""A linear classifier on a frozen MAE ViT-L/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_mae_l_imagenet.py

Aims at 76.0 top-1 (facebookresearch/mae, FINETUNE.md). The recipe is that of the ViT-B config with 50 epochs.

Cost: about 130 V100 hours.
"""

from mmengine.config import read_base

with read_base():
    from .linear_mae_b_imagenet import *

model.network.backbone.name = 'vit_large_patch16_224.mae'
schedule.update(max_epochs=50)
