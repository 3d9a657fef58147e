"""COCO 2017 with masks, large-scale jitter at 640, as EoMT prepares it (tue-mps/eomt, datasets/coco_instance.py).

118,287 + 5,000 images, 80 classes. Training images are flipped, resized by 0.1 ... 2.0 of 640 and cropped or padded
with black to 640 x 640, sampled again while no object is left; validation images are resized to fit inside 640 x 640
and padded to it.
"""

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.transforms.common import Pad, RandomFlip, ResizeShortSide
from vitdense.data.transforms.detection import LargeScaleJitter
from vitdense.metrics.average_precision import CocoAP

data_root = 'data/coco'

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_train2017.json',
        images='train2017',
        masks=True,
        drop_empty=True,
        transforms=dict(
            flip=dict(type=RandomFlip),
            jitter=dict(type=LargeScaleJitter, size=640, ratio=(0.1, 2.0), fill=0, require_labels=True),
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_val2017.json',
        images='val2017',
        masks=True,
        evaluation=True,
        transforms=dict(
            resize=dict(type=ResizeShortSide, size=640, max_size=640),
            pad=dict(type=Pad, size=640),
        ),
    ),
)
val_evaluator = [dict(type=CocoAP, head='det', engine='auto', iou_type='segm')]
