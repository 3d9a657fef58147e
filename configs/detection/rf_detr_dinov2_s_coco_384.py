"""The real-time detector, nano: DINOv2 ViT-S with patches of 16 at 384 x 384, two decoder layers, COCO.

    python tools/train.py configs/detection/rf_detr_dinov2_s_coco_384.py

No published number for training from DINOv2 on COCO alone: RF-DETR nano, of this shape, reaches 48.4 AP after
Objects365. Recipe: RF-DETR's: 300 queries, 13 groups of them in training, IoU-aware classification loss; AdamW 1e-4,
ViT 1.5e-4 with layer decay 0.8, weight decay 1e-4, 100 epochs of 16 images (four times four), weights averaged, images
flipped, often cropped, and resized to squares of 224 ... 544.

Differs from the source in: the average of the weights begins with a momentum of 9 / (10 + step), not 1 - 0.993 (1 -
exp(-step / 100)); see also `_base_/real_time_detr.py`.

Cost: about two days on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco import *
    from .._base_.real_time_detr import *
    from .._base_.runtime import *

from vitdense.data.transforms.common import ResizeTo

model.network.branches.det.head.update(num_decoder_layers=2)
train_dataloader.update(batch_size=4)
train_dataloader.dataset.transforms.resize.update(square=True, sizes=[32 * cells for cells in range(7, 18)])
val_dataloader.dataset.transforms.resize = dict(type=ResizeTo, size=384)
val_dataloader.update(batch_size=8)
schedule = dict(max_epochs=100, val_interval=5, decay='constant')
ema = dict(momentum=0.007, buffers=True)
checkpoint.update(interval=1, best='det/AP')
