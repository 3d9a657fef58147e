"""336 + 206 images of COCO 2017 with a long side of 480, and all of its 80 classes: to try detectors on."""

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.transforms.common import RandomFlip, ResizeShortSide
from vitdense.data.transforms.detection import MultiScaleCrop
from vitdense.metrics.average_precision import CocoAP

data_root = 'data/coco_mini480'

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_train2017.json',
        images='train2017',
        transforms=dict(
            flip=dict(type=RandomFlip),
            resize=dict(
                type=MultiScaleCrop, sizes=(256, 320, 384, 448), max_size=640, before=(256, 320, 384), crop=(192, 384)
            ),
        ),
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_val2017.json',
        images='val2017',
        evaluation=True,
        transforms=dict(resize=dict(type=ResizeShortSide, size=384, max_size=640)),
    ),
)
val_evaluator = [dict(type=CocoAP, head='det', engine='auto')]
