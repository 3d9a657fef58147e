"""Linear segmentation on a frozen DINOv3 ViT-L/16, ADE20K.

    python tools/train.py configs/semantic/linear_dinov3_l_ade20k.py

Aims at 54.9 mIoU, single scale (DINOv3 model card). The recipe is that of the ViT-S config.

Cost: about 10 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov3_s_ade20k import *

model.network.backbone.name = 'vit_large_patch16_dinov3.lvd1689m'
