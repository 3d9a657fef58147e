"""Masked autoencoder with a ViT-B/16, ImageNet-1k without labels, 800 epochs.

    python tools/train.py configs/pretraining/mae_vit_b_imagenet.py

No published number for 800 epochs; the encoder that the authors published, after 1600, reaches 83.66 % top-1 when it is
fine-tuned. Recipe (facebookresearch/mae, PRETRAIN.md): 75 % of the patches hidden, normalised pixels, a decoder of 8
blocks of 512 channels; AdamW (0.9, 0.95), 1.5e-4 for each 256 of 4096 images, weight decay 0.05, 40 epochs of warm-up,
cosine decay. The batch is that of all processes: `torchrun --nproc_per_node 8 tools/train.py ...` gives each 512
images. Where they do not fit, divide train_dataloader.batch_size by N, and multiply optim_wrapper.accumulative_counts
and schedule.warmup_iters, which counts batches, by N.

The encoder is left as encoder.safetensors, in timm's names: model.network.backbone.pretrained=FILE loads it.

Cost: not measured; 1.0e9 images through a quarter of the ViT and the decoder.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.mae import *
    from .._base_.runtime import *

checkpoint.update(interval=20, best='mae/error', rule='less')
