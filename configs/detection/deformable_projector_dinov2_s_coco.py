"""Two-stage Deformable-DETR on DINOv2 ViT-S run with patches of 16, COCO.

    python tools/train.py configs/detection/deformable_projector_dinov2_s_coco.py

No published number for this pair (Deformable-DETR's own, with two stages and a ResNet-50, reaches 46.2 AP). Recipe:
four layers projected to strides 8, 16 and 32 and one level coarser; 300 queries, box refinement; AdamW 1e-4, layer
decay 0.7 in the ViT (ViT-Adapter's for DINOv2-S), sampling offsets at a tenth, weight decay 1e-4, gradients clipped at
0.1, 50 epochs of 16 images with DETR's sizes, a tenth of the rate after 40.

Cost: about two days on eight 24 GB GPUs (`torchrun --nproc_per_node 8`: two images each).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco import *
    from .._base_.deformable_detr import *
    from .._base_.runtime import *

schedule = dict(max_epochs=50, val_interval=2, decay='step', milestones=(40,), gamma=0.1)
checkpoint.update(interval=1, best='det/AP')
