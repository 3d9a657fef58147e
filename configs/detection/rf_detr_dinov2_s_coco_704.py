"""The real-time detector, large: DINOv2 ViT-S with patches of 16 at 704 x 704, four decoder layers, COCO.

    python tools/train.py configs/detection/rf_detr_dinov2_s_coco_704.py

No published number for training from DINOv2 on COCO alone: RF-DETR large (of 2026), of this shape, reaches 56.5 AP
after Objects365. Recipe: that of nano, with squares of 544 ... 864.

Cost: about six days on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .rf_detr_dinov2_s_coco_384 import *

model.network.branches.det.head.update(num_decoder_layers=4)
train_dataloader.dataset.transforms.resize.update(sizes=[32 * cells for cells in range(17, 28)])
val_dataloader.dataset.transforms.resize.update(size=704)
