"""The real-time detector, medium: DINOv2 ViT-S with patches of 16 at 576 x 576, four decoder layers, COCO.

    python tools/train.py configs/detection/rf_detr_dinov2_s_coco_576.py

No published number for training from DINOv2 on COCO alone: RF-DETR medium, of this shape, reaches 54.7 AP after
Objects365. Recipe: that of nano, with squares of 416 ... 736.

Cost: about four days on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .rf_detr_dinov2_s_coco_384 import *

model.network.branches.det.head.update(num_decoder_layers=4)
train_dataloader.dataset.transforms.resize.update(sizes=[32 * cells for cells in range(13, 24)])
val_dataloader.dataset.transforms.resize.update(size=576)
