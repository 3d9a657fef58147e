"""A linear classifier on a frozen DINOv2 ViT-S/14, ImageNet-1k.

    python tools/train.py configs/classification/linear_dinov2_s_imagenet.py

Aims at 81.1 top-1 (facebookresearch/dinov2, README.md), the best of 52 classifiers: class tokens of the last 1 or 4
layers, with or without the average of the last map, at 13 learning rates from 1e-5 to 0.1 (for 256 images). This is
one of them: 4 layers with the average, 5e-3. SGD with momentum 0.9, no weight decay, cosine to zero, 12 500 steps of
1024 images; random crops and mirror images.

Cost: about 5 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_linear import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *
    from .._base_.schedules.cosine_12500 import *

model.network.branches.cls.adapter.update(layers=(8, 9, 10, 11))
model.network.branches.cls.head.update(pool='both')
train_dataloader.batch_size = 1024
del train_dataloader.dataset.transforms['augment']
checkpoint.update(interval=2_500, best='cls/top1')
