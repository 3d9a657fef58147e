"""The classifier of DeiT III ViT-L/16 as it was published, ImageNet-1k.

    python tools/train.py configs/classification/original_deit3_l_imagenet.py

Aims at 84.9 top-1 (facebookresearch/deit, README_revenge.md) without any training:

    python tools/test.py configs/classification/original_deit3_l_imagenet.py

Training goes on with it, by the recipe of the fine-tuning config at 224 pixels.
"""

from mmengine.config import read_base

with read_base():
    from .finetuned_deit3_s_imagenet import *

model.network.backbone.update(name='deit3_large_patch16_224.fb_in1k', img_size=None, drop_path=0.4)
train_dataloader.dataset.transforms.crop.update(size=224)
val_dataloader.dataset.transforms.crop.update(
    checkpoint='deit3_large_patch16_224.fb_in1k', size=None, crop_pct=None, interpolation=None
)  # what the checkpoint says
