"""The real-time detector, small: DINOv2 ViT-S with patches of 16 at 512 x 512, three decoder layers, COCO.

    python tools/train.py configs/detection/rf_detr_dinov2_s_coco_512.py

No published number for training from DINOv2 on COCO alone: RF-DETR small, of this shape, reaches 53.0 AP after
Objects365. Recipe: that of nano, with squares of 352 ... 672.

Cost: about three days on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .rf_detr_dinov2_s_coco_384 import *

model.network.branches.det.head.update(num_decoder_layers=3)
train_dataloader.dataset.transforms.resize.update(sizes=[32 * cells for cells in range(11, 22)])
val_dataloader.dataset.transforms.resize.update(size=512)
