"""Preset of `vitdense finetune`: detection on a GPU of 10 GiB or more.

    python tools/train.py configs/presets/detection_gpu.py --data FOLDER

RF-DETR's detector at 512 pixels on a DINOv2 ViT-S/16 in windows, three decoder layers, 300 queries in 13 groups.
Batches of 8 squares of 384 ... 640, images flipped, cropped and in the first part of the run put together as mosaics.

No published number.

Cost: not measured.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_mini480 import *
    from .._base_.real_time_detr import *
    from .._base_.runtime import *

from vitdense.data.transforms.common import RandomFlip, ResizeTo
from vitdense.data.transforms.detection import MultiScaleCrop
from vitdense.data.transforms.multi_image import Mosaic

train_dataloader.update(batch_size=8, num_workers=4)
train_dataloader.dataset.transforms = dict(
    flip=dict(type=RandomFlip),
    mosaic=dict(type=Mosaic, size=640, probability=0.3, epochs=60),
    resize=dict(type=MultiScaleCrop, sizes=(384, 448, 512, 576, 640), square=True),
)
val_dataloader.update(batch_size=8)
val_dataloader.dataset.transforms.resize = dict(type=ResizeTo, size=512)
schedule = dict(max_iters=3000, val_interval=500, warmup_iters=100, decay='cosine')
ema = dict(momentum=0.005, buffers=True)
checkpoint.update(interval=500, best='det/AP')
