"""UPerNet on the simple feature pyramid of a frozen ViT-Ti/16, CamVid.

    python tools/train.py configs/semantic/upernet_simple_frozen_vit_ti_camvid.py

No published number. The budget is that of `linear_vit_ti_camvid.py`, which it is compared with: 1000 steps of
8 crops of 320 on the same last layer of the same frozen ViT.
"""

from mmengine.config import read_base

with read_base():
    from .upernet_vit_ti_camvid import *

from vitdense.adapters.pyramid import SimplePyramid

model.network.backbone.update(frozen=True, drop_path=0.0)
model.network.branches.sem.adapter = dict(type=SimplePyramid, channels=96)
schedule.update(max_iters=1000, val_interval=500, decay='cosine', power=1.0)
checkpoint.update(interval=500)
