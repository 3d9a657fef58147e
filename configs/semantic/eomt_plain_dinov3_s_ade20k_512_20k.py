"""EoMT on DINOv3 ViT-S/16, ADE20K.

    python tools/train.py configs/semantic/eomt_plain_dinov3_s_ade20k_512_20k.py

Aims at 46.6 mIoU, single scale (lightly-train, pull request 291, whose recipe differs in details). The recipe is that
of the ViT-L leaf, with queries in the last three blocks.

Cost: about 3 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .eomt_plain_dinov3_l_ade20k_512_20k import *

model.network.backbone.name = 'vit_small_patch16_dinov3.lvd1689m'
model.network.num_blocks = 3
optim_wrapper.groups.full_blocks = 3
custom_hooks[0].update(begin=None, end=None)
