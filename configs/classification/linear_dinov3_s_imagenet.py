"""A linear classifier on a frozen DINOv3 ViT-S/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_dinov3_s_imagenet.py

No published number on the validation labels; the model card has those of ImageNet-ReaL. The recipe
is that of the DINOv2 config with the class token of the last layer alone.

Cost: about 6 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_linear import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *
    from .._base_.schedules.cosine_12500 import *

model.network.backbone.name = 'vit_small_patch16_dinov3.lvd1689m'
model.network.branches.cls.adapter.update(layers=(-1,))
model.network.branches.cls.head.update(pool='token')
train_dataloader.batch_size = 1024
del train_dataloader.dataset.transforms['augment']
checkpoint.update(interval=2_500, best='cls/top1')
