"""Linear segmentation on four concatenated layers of a frozen ViT-Ti/16, CamVid.

    python tools/train.py configs/semantic/linear_layers4_vit_ti_camvid.py

Aims at 0.55 mIoU on the 101 validation images in under 10 minutes on 2 CPU cores. There is no published number.
"""

from mmengine.config import read_base

with read_base():
    from .linear_vit_ti_camvid import *

model.network.branches.sem.adapter.update(layers=(2, 5, 8, 11), concat=True)
schedule.update(max_iters=800, val_interval=400)
