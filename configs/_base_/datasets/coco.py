"""COCO 2017: 118,287 + 5,000 images, 80 classes; DETR's sizes.

Training images are flipped, often cropped, and resized to a short side of 480 ... 800, at most 1333 long; validation
images keep their aspect ratio with a short side of 800. What a batch adds to fill up is known as padding.
"""

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.transforms.common import RandomFlip, ResizeShortSide
from vitdense.data.transforms.detection import MultiScaleCrop
from vitdense.metrics.average_precision import CocoAP

data_root = 'data/coco'

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_train2017.json',
        images='train2017',
        transforms=dict(flip=dict(type=RandomFlip), resize=dict(type=MultiScaleCrop)),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_val2017.json',
        images='val2017',
        evaluation=True,
        transforms=dict(resize=dict(type=ResizeShortSide, size=800, max_size=1333)),
    ),
)
val_evaluator = [dict(type=CocoAP, head='det', engine='auto')]
