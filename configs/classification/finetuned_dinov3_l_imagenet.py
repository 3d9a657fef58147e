"""Fine-tuning of DINOv3 ViT-L/16, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_dinov3_l_imagenet.py

No published number: DINOv3 reports this backbone frozen. The recipe is that of the
DINOv2 config of this size, at 256 pixels.

Cost: about 480 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .finetuned_dinov3_s_imagenet import *

model.network.backbone.update(name='vit_large_patch16_dinov3.lvd1689m', drop_path=0.3)
optim_wrapper.groups.update(decay=0.75)
