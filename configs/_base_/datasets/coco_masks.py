"""COCO 2017 with masks: 118,287 + 5,000 pictures, 80 classes; large-scale jitter at 640 (EoMT, arXiv:2503.19108).

Training pictures are resized by 0.1 ... 2.0 of 640 and cut or filled up to 640 x 640; validation pictures keep their
aspect ratio with a long side of 640.
"""

from vitdense.data.coco import CocoDetection
from vitdense.data.scales import LargeScaleJitter
from vitdense.data.transforms import RandomFlip, ResizeShortSide
from vitdense.metrics.coco import CocoAP

data_root = 'data/coco'

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_train2017.json',
        images='train2017',
        name='coco',
        masks=True,
        drop_empty=True,
        transforms=[dict(type=RandomFlip), dict(type=LargeScaleJitter, size=640, ratio=(0.1, 2.0), fill=0)],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(
        type=CocoDetection,
        annotations='annotations/instances_val2017.json',
        images='val2017',
        name='coco',
        masks=True,
        evaluation=True,
        transforms=[dict(type=ResizeShortSide, size=640, max_size=640)],
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=CocoAP, head='det', iou_type='segm', engine='auto')]
test_evaluator = val_evaluator
