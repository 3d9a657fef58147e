"""UPerNet on a fine-tuned ViT-Ti/16, CamVid.

    python tools/train.py configs/semantic/upernet_vit_ti_camvid.py

Aims at 0.64 mIoU on the 101 validation images in under 40 minutes on 2 CPU cores. There is no published number.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.camvid import *
    from .._base_.runtime import *
    from .._base_.upernet import *

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k')
model.network.branches.sem.adapter.update(layers=(2, 5, 8, 11))
model.network.branches.sem.head.update(channels=64, aux_channels=64)
model.tiler = None
optim_wrapper.optimizer.update(lr=3e-4)
optim_wrapper.groups.update(decay=0.8, head_lr=15)  # the head starts from nothing, and the run is short
schedule = dict(max_iters=1300, val_interval=650, warmup_iters=100, decay='poly', power=0.9)
checkpoint.update(interval=650)
