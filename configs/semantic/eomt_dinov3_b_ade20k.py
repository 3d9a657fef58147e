"""EoMT on DINOv3 ViT-B/16, ADE20K.

    python tools/train.py configs/semantic/eomt_dinov3_b_ade20k.py

Aims at 54.4 mIoU, single scale (lightly-train, pull request 291, whose recipe differs in details). The recipe is that
of the ViT-L config, with queries in the last three blocks, whose masks fall to nothing in the shares of the run of the
authors' runs of three blocks: 1/6 - 1/3, 5/12 - 7/12, 2/3 - 5/6 (tue-mps/eomt,
configs/dinov2/coco/panoptic/eomt_base_640_2x.yaml).

Cost: about 6 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .eomt_dinov3_l_ade20k import *

model.network.backbone.name = 'vit_base_patch16_dinov3_qkvb.lvd1689m'
model.network.num_blocks = 3
optim_wrapper.groups.full_blocks = 3
custom_hooks[0].update(begin=(1 / 6, 5 / 12, 2 / 3), end=(1 / 3, 7 / 12, 5 / 6))
