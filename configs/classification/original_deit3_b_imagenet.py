"""The classifier of DeiT III ViT-B/16 as it was published, ImageNet-1k.

    python tools/train.py configs/classification/original_deit3_b_imagenet.py

Aims at 83.8 top-1 (facebookresearch/deit, README_revenge.md) without any training:

    python tools/test.py configs/classification/original_deit3_b_imagenet.py

Training goes on with it, by the recipe of the fine-tuning config at 224 pixels.
"""

from mmengine.config import read_base

with read_base():
    from .finetuned_deit3_s_imagenet import *

model.network.backbone.update(name='deit3_base_patch16_224.fb_in1k', img_size=None, drop_path=0.15)
train_dataloader.dataset.transforms.crop.update(size=224)
val_dataloader.dataset.transforms.crop.update(
    checkpoint='deit3_base_patch16_224.fb_in1k', size=None, crop_pct=None, interpolation=None
)  # what the checkpoint says
