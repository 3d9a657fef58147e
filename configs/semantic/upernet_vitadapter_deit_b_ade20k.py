"""UPerNet on a ViT-Adapter around a DeiT ViT-B/16, ADE20K.

    python tools/train.py configs/semantic/upernet_vitadapter_deit_b_ade20k.py

Aims at 48.8 mIoU, single scale (ViT-Adapter, segmentation/configs/ade20k). Recipe (the same folder): interactions
behind the four quarters of the ViT, global attention, no class token, 12 heads of deformable attention that read half
the channels, UPerNet of 512 channels with an auxiliary head of 256; layer decay 0.95, AdamW 6e-5, weight decay 0.01,
drop path 0.3; 1500 steps of warm-up, linear decay, 160 000 steps of 16 crops, windows of 512 every 341 pixels.

As in the source, LayerScale begins at 1, cross-entropy is averaged over all pixels, crops are padded after
normalisation, and test images are resized to the next multiples of 32.

Differs from the source in: a test image is resized once, straight to the multiples.

Cost: about 40 hours on one 80 GB GPU (estimated).
"""

from mmengine.config import read_base

with read_base():
    from .upernet_vitadapter_deit_s_ade20k import *

model.network.backbone.vit.update(name='deit_base_patch16_224.fb_in1k', drop_path=0.3)
model.network.backbone.update(num_heads=12, deform_ratio=0.5, drop_path=0.3)
