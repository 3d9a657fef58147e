"""Linear segmentation on a frozen DINOv2 ViT-L/14, ADE20K.

    python tools/train.py configs/semantic/linear_dinov2_l_ade20k.py

Aims at 47.7 mIoU, single scale (DINOv2 paper, arXiv 2304.07193, table of linear semantic segmentation). The recipe is
that of the ViT-S config.

Cost: about 10 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov2_s_ade20k import *

model.network.backbone.name = 'vit_large_patch14_dinov2.lvd142m'
