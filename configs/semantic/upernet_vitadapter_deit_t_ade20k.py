"""UPerNet on a ViT-Adapter around a DeiT ViT-Ti/16, ADE20K.

    python tools/train.py configs/semantic/upernet_vitadapter_deit_t_ade20k.py

Aims at 42.6 mIoU, single scale (ViT-Adapter, segmentation/configs/ade20k). Recipe (the same folder): interactions
behind the four quarters of the ViT, global attention, no class token, 6 heads of deformable attention that read all
channels, UPerNet of 512 channels with an auxiliary head of 256; layer decay 0.95, AdamW 1.2e-4, weight decay 0.01, drop
path 0.1; 1500 steps of warm-up, linear decay, 160 000 steps of 16 crops, windows of 512 every 341 pixels.

As in the source, LayerScale begins at 1, cross-entropy is averaged over all pixels, crops are padded after
normalisation, and test images are resized to the next multiples of 32.

Differs from the source in: a test image is resized once, straight to the multiples.

Cost: about 24 hours on one 40 GB GPU (estimated).
"""

from mmengine.config import read_base

with read_base():
    from .upernet_vitadapter_deit_s_ade20k import *

model.network.backbone.vit.update(name='deit_tiny_patch16_224.fb_in1k', drop_path=0.1)
model.network.backbone.update(drop_path=0.1)
optim_wrapper.optimizer.update(lr=1.2e-4)
