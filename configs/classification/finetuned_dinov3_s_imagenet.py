"""Fine-tuning of DINOv3 ViT-S/16, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_dinov3_s_imagenet.py

No published number: DINOv3 reports this backbone frozen. The recipe is that of the
DINOv2 leaf at 256 pixels, the size that the checkpoint names.

Cost: about 65 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .finetuned_dinov2_s_imagenet import *

model.network.backbone.update(name='vit_small_patch16_dinov3.lvd1689m')
train_dataloader.dataset.transforms.crop.update(size=256)
val_dataloader.dataset.transforms.crop.update(size=256, crop_pct=1.0)
