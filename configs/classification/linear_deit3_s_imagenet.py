"""A linear classifier on a frozen DeiT III ViT-S/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_deit3_s_imagenet.py

No published number for a classifier trained anew; the checkpoint's own, on the same tokens, has 81.4 top-1
(facebookresearch/deit, README_revenge.md), and original_deit3_s_imagenet.py evaluates it. The recipe is
that of the DINOv3 config.

Cost: about 5 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_linear import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *
    from .._base_.schedules.cosine_12500 import *

model.network.backbone.name = 'deit3_small_patch16_224.fb_in1k'
model.network.branches.cls.adapter.update(layers=(-1,))
model.network.branches.cls.head.update(pool='token')
train_dataloader.batch_size = 1024
del train_dataloader.dataset.transforms['augment']
val_dataloader.dataset.transforms.crop.update(crop_pct=1.0)
checkpoint.update(interval=2_500, best='cls/top1')
