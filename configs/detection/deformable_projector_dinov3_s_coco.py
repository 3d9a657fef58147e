"""Two-stage Deformable-DETR on DINOv3 ViT-S/16, COCO.

    python tools/train.py configs/detection/deformable_projector_dinov3_s_coco.py

No published number for this pair. Recipe: that of DINOv2 ViT-S.

Cost: about two days on eight 24 GB GPUs (`torchrun --nproc_per_node 8`: two images each).
"""

from mmengine.config import read_base

with read_base():
    from .deformable_projector_dinov2_s_coco import *

model.network.backbone.update(name='vit_small_patch16_dinov3.lvd1689m')
