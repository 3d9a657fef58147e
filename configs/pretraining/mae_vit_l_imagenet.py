"""Masked autoencoder with a ViT-L/16, ImageNet-1k without labels, 800 epochs.

    python tools/train.py configs/pretraining/mae_vit_l_imagenet.py

Aims at 85.4 % top-1 after fine-tuning (MAE, https://arxiv.org/abs/2111.06377, table 1d, "pixel (w/ norm)"). Recipe
as in mae_vit_b_imagenet.py, in two batches of 2048 images, 256 on each of 8 GPUs.

Cost: not measured; 1.0e9 images through a quarter of the ViT and the decoder.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.mae import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_large_patch16_224.mae')
train_dataloader.update(batch_size=2048)
optim_wrapper.update(accumulative_counts=2)
schedule.update(warmup_iters=2 * 40 * 313)  # steps count batches
checkpoint.update(interval=20, best='mae/error', rule='less')
