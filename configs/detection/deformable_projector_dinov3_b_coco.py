"""Two-stage Deformable-DETR on DINOv3 ViT-B/16, COCO.

    python tools/train.py configs/detection/deformable_projector_dinov3_b_coco.py

No published number for this pair. Recipe: that of DINOv2 ViT-S with layer decay 0.6 and drop path 0.3 (ViT-Adapter's
for DINOv2-B).

Cost: about four days on eight 40 GB GPUs (`torchrun --nproc_per_node 8`: two images each).
"""

from mmengine.config import read_base

with read_base():
    from .deformable_projector_dinov2_s_coco import *

model.network.backbone.update(name='vit_base_patch16_dinov3.lvd1689m', drop_path=0.3)
optim_wrapper.groups.update(decay=0.6)
