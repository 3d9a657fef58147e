"""The original DETR on DINOv2 ViT-S run with patches of 16, COCO.

    python tools/train.py configs/detection/detr_dinov2_s_coco.py

No published number for this backbone (with a ResNet-50 DETR reaches 42.0 AP in 500 epochs). Recipe: DETR's: 100
queries, six encoder and decoder layers on the one map of stride 16; AdamW 1e-4, backbone at a tenth, weight decay
1e-4, gradients clipped at 0.1, 300 epochs of 16 images with DETR's sizes, a tenth of the rate after 200.

Cost: about ten days on eight 24 GB GPUs (`torchrun --nproc_per_node 8`: two images each); a reference for the
deformable heads, which reach the same in a tenth of the time.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco import *
    from .._base_.detr import *
    from .._base_.runtime import *

schedule = dict(max_epochs=300, val_interval=10, decay='step', milestones=(200,), gamma=0.1)
checkpoint.update(interval=2, best='det/AP')
