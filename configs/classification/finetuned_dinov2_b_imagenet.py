"""Fine-tuning of DINOv2 ViT-B/14, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_dinov2_b_imagenet.py

No published number: DINOv2 reports fine-tuning for ViT-g only; with this backbone frozen, a linear layer has 84.5. The
recipe is that of the ViT-S config with layer decay 0.65 and drop path 0.2.

Cost: about 150 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .finetuned_dinov2_s_imagenet import *

model.network.backbone.update(name='vit_base_patch14_dinov2.lvd142m', drop_path=0.2)
