"""Linear segmentation on the last layer of a frozen ViT-Ti/16, CamVid.

    python tools/train.py configs/semantic/linear_vit_ti_camvid.py

Aims at 0.50 mIoU on the 101 validation images in under 10 minutes on 2 CPU cores. There is no published number.
Without network, put a local file in place of the hub's:
--cfg-options model.network.backbone.pretrained=WEIGHTS.safetensors data_root=CAMVID
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.camvid import *
    from .._base_.linear_frozen import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k')
model.tiler = None
optim_wrapper.optimizer.update(lr=1e-2)
schedule = dict(max_iters=1000, val_interval=500, warmup_iters=50, decay='cosine')
checkpoint.update(interval=500)
