"""COCO 2017: 118,287 + 5,000 images, 80 classes; large-scale jitter at 1024 (ViTDet, arXiv:2203.16527).

Training images are flipped, resized by 0.1 ... 2.0 of 1024 and cut or filled up to 1024 x 1024; validation images
keep their aspect ratio with a long side of 1024.
"""

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.transforms.common import RandomFlip, ResizeShortSide
from vitdense.data.transforms.detection import LargeScaleJitter
from vitdense.metrics.average_precision import CocoAP

data_root = 'data/coco'

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_train2017.json',
        images='train2017',
        transforms=dict(flip=dict(type=RandomFlip), jitter=dict(type=LargeScaleJitter, size=1024, ratio=(0.1, 2.0))),
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
        transforms=dict(resize=dict(type=ResizeShortSide, size=1024, max_size=1024)),
    ),
)
val_evaluator = [dict(type=CocoAP, head='det', engine='auto')]
