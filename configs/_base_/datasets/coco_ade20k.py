"""COCO 2017 and ADE20K: boxes of 80 classes and maps of 150, on images that are labelled for one of them.

Folders `coco` and `ADEChallengeData2016` below `data_root`. Two of three batches are of COCO, flipped, often cropped
and resized to a short side of 384 ... 640; one is of ADE20K, resized by 0.5 ... 2.0 of 2048 x 512 and cropped to 512.
Each is validated by its own metric.
"""

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.mixture import Mixture
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.transforms.common import PhotometricDistortion, RandomCrop, RandomFlip, RandomResize, ResizeShortSide
from vitdense.data.transforms.detection import MultiScaleCrop
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.miou import MeanIoU

data_root = 'data'

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    dataset=dict(
        type=Mixture,
        batches='homogeneous',
        weights=dict(coco=2, ade20k=1),
        datasets=dict(
            coco=dict(
                type=CocoDetection,
                root='coco',
                annotations='annotations/instances_train2017.json',
                images='train2017',
                transforms=dict(
                    flip=dict(type=RandomFlip),
                    resize=dict(type=MultiScaleCrop, sizes=(384, 448, 512, 576, 640), max_size=1067),
                ),
            ),
            ade20k=dict(
                type=SegmentationDataset,
                root='ADEChallengeData2016',
                images='images/training',
                labels='annotations/training',
                classes='ade20k',
                reduce_zero_label=True,
                transforms=dict(
                    resize=dict(type=RandomResize, scale=(2048, 512), ratio=(0.5, 2.0)),
                    crop=dict(type=RandomCrop, size=(512, 512), max_category_fraction=0.75),
                    flip=dict(type=RandomFlip),
                    color=dict(type=PhotometricDistortion),
                ),
            ),
        ),
    ),
)
val_dataloader = dict(
    coco=dict(
        batch_size=1,
        num_workers=4,
        dataset=dict(
            type=CocoDetection,
            root='coco',
            annotations='annotations/instances_val2017.json',
            images='val2017',
            name='coco',
            evaluation=True,
            transforms=dict(resize=dict(type=ResizeShortSide, size=640, max_size=1067)),
        ),
    ),
    ade20k=dict(
        batch_size=1,
        num_workers=4,
        dataset=dict(
            type=SegmentationDataset,
            root='ADEChallengeData2016',
            images='images/validation',
            labels='annotations/validation',
            classes='ade20k',
            reduce_zero_label=True,
            name='ade20k',
            evaluation=True,
            transforms=dict(resize=dict(type=ResizeShortSide, size=512, max_size=2048)),
        ),
    ),
)
val_evaluator = dict(coco=[dict(type=CocoAP, head='det', engine='auto')], ade20k=[dict(type=MeanIoU, head='sem')])
