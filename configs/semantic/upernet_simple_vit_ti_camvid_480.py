"""UPerNet on the simple feature pyramid of a fine-tuned ViT-Ti/16, CamVid.

    python tools/train.py configs/semantic/upernet_simple_vit_ti_camvid_480.py

No published number. The budget is that of the UPerNet leaf on four layers: 1300 steps of 8 crops of 320, with the same
optimizer and rates. The pyramid is made of the last layer alone and is 96 channels wide; the head has layer norm.
"""

from mmengine.config import read_base

with read_base():
    from .upernet_layers4_vit_ti_camvid_480 import *

from vitdense.adapters.pyramid import SimplePyramid

model.network.branches.sem.adapter = dict(type=SimplePyramid, channels=96)
model.network.branches.sem.head.update(norm='layer')
