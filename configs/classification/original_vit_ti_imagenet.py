"""The classifier of AugReg ViT-Ti/16 as it was published, ImageNet-1k.

    python tools/train.py configs/classification/original_vit_ti_imagenet.py

Aims at about 75 top-1 (timm lists 75.5) without any training:

    python tools/test.py configs/classification/original_vit_ti_imagenet.py

The weights come from the hub, or from a file that is named behind the config; data_root=IMAGENETTE tests the 1000
classes on folders of some of them. Training goes on with it, by the fine-tuning recipe of DeiT III.
"""

from mmengine.config import read_base

with read_base():
    from .finetuned_deit3_s_imagenet import *

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k', img_size=None)
train_dataloader.dataset.transforms.crop.update(size=224)
val_dataloader.dataset.transforms.crop.update(
    checkpoint='vit_tiny_patch16_224.augreg_in21k_ft_in1k', size=None, crop_pct=None, interpolation=None
)  # what the checkpoint says
