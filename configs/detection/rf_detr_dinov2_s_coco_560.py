"""The real-time detector, base: DINOv2 ViT-S with patches of 14 at 560 x 560, 4 x 4 windows, three decoder layers,
COCO.

    python tools/train.py configs/detection/rf_detr_dinov2_s_coco_560.py

No published number: this is the shape of RF-DETR base, the first that was published; its score without Objects365 is
not published. Recipe: that of nano, with squares of 280 ... 840; layer decay counts 12 layers here, 13 there, as the
last layer that is read is 11 and not 12.

Cost: about five days on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .rf_detr_dinov2_s_coco_384 import *

model.network.backbone.update(patch_size=14)
model.network.backbone.windows.update(split=4, global_blocks=(2, 5, 8, 11))
model.network.branches.det.adapter.update(layers=(1, 4, 7, 10))
model.network.branches.det.head.update(num_decoder_layers=3)
optim_wrapper.groups.update(backbone_lr=0.735)
train_dataloader.dataset.transforms.resize.update(sizes=[56 * cells for cells in range(5, 16)])
val_dataloader.dataset.transforms.resize.update(size=560)
