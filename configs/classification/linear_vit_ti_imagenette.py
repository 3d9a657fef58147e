"""A linear classifier on a frozen ViT-Ti/16, Imagenette.

    python tools/train.py configs/classification/linear_vit_ti_imagenette.py

Aims at 0.97 top-1 of 10 classes on 300 validation images, with 600 to train on, in about 3 minutes on 2 CPU cores.
There is no published number. Without network, put a local file in place of the hub's:
--cfg-options model.network.backbone.pretrained=WEIGHTS.safetensors data_root=IMAGENETTE
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_linear import *
    from .._base_.datasets.imagenette import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k')
optim_wrapper.optimizer.update(lr=3e-3)
schedule = dict(max_epochs=6, val_interval=3, decay='cosine')
checkpoint.update(interval=3, best='cls/top1')
