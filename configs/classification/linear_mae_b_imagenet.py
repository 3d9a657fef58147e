"""A linear classifier on a frozen MAE ViT-B/16, ImageNet-1k.

    python tools/train.py configs/classification/linear_mae_b_imagenet.py

Aims at 67.8 top-1 (facebookresearch/mae, FINETUNE.md). Recipe: batch norm without gains and a linear layer on the class
token; LARS 6.4 (0.1 for 256 images), no weight decay, 10 epochs of warm-up, cosine to zero, 90 epochs of batches of
16 384; random crops and mirror images. timm's LARS adapts the bias as well, which the published code does not.

One update is 16 batches of 1024 images, which the processes share, each with batch statistics of its own (published:
512; with 8 processes 128 here: set train_dataloader.batch_size=4096 optim_wrapper.accumulative_counts=4
schedule.warmup_iters=3130 for 512).

Cost: about 75 V100 hours (the published 2 h 20 min on 32 of them).
"""

from mmengine.config import read_base
from timm.optim import Lars

with read_base():
    from .._base_.class_linear import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *

model.network.backbone.name = 'vit_base_patch16_224.mae'
model.network.branches.cls.head.update(norm='batch')
optim_wrapper.update(
    optimizer=dict(type=Lars, lr=6.4, momentum=0.9, weight_decay=0.0, always_adapt=True), accumulative_counts=16
)
train_dataloader.batch_size = 1024
del train_dataloader.dataset.transforms['augment']
schedule = dict(max_epochs=90, val_interval=10, warmup_iters=12_520, warmup_ratio=0.0, decay='cosine')
checkpoint.update(interval=5, best='cls/top1')
