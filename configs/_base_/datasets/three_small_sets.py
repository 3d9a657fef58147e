"""CamVid, 336 + 206 images of COCO and Imagenette: maps, boxes and labels, on images that have one of them.

Folders `camvid`, `coco_mini480` and `imagenette160` below `data_root`. Of six batches two are of CamVid, three of COCO
and one is of Imagenette; each is prepared and validated as in the config of its task alone.
"""

from torchvision.transforms.v2 import RandomResizedCrop

from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.mixture import Mixture
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.transforms.common import PhotometricDistortion, RandomCrop, RandomFlip, RandomResize, ResizeTo
from vitdense.data.transforms.detection import MultiScaleCrop
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.metrics.accuracy import Accuracy
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.miou import MeanIoU

data_root = 'data'

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type=Mixture,
        batches='homogeneous',
        weights=dict(camvid=2, coco_mini480=3, imagenette=1),
        datasets=dict(
            camvid=dict(
                type=SegmentationDataset,
                root='camvid',
                images='images/training',
                labels='annotations/training',
                classes='classes.txt',
                ignore=11,
                transforms=dict(
                    resize=dict(type=RandomResize, scale=(480, 360), ratio=(0.75, 2.0)),
                    crop=dict(type=RandomCrop, size=(320, 320), max_category_fraction=0.75),
                    flip=dict(type=RandomFlip),
                    color=dict(type=PhotometricDistortion),
                ),
            ),
            coco_mini480=dict(
                type=CocoDetection,
                root='coco_mini480',
                annotations='annotations/instances_train2017.json',
                images='train2017',
                transforms=dict(
                    flip=dict(type=RandomFlip),
                    resize=dict(
                        type=MultiScaleCrop,
                        sizes=(224, 256, 288),
                        square=True,
                        before=(256, 320, 384),
                        crop=(192, 384),
                    ),
                ),
            ),
            imagenette=dict(
                type=ClassificationDataset,
                root='imagenette160',
                folder='train',
                wordnet='imagenet1k',
                transforms=dict(
                    crop=dict(type=RandomResizedCrop, size=224, scale=(0.35, 1.0), interpolation=3),
                    flip=dict(type=RandomFlip),
                ),
            ),
        ),
    ),
)
val_dataloader = dict(
    camvid=dict(
        batch_size=4,
        num_workers=1,
        dataset=dict(
            type=SegmentationDataset,
            root='camvid',
            images='images/validation',
            labels='annotations/validation',
            classes='classes.txt',
            ignore=11,
            name='camvid',
            evaluation=True,
            transforms=dict(),
        ),
    ),
    coco_mini480=dict(
        batch_size=4,
        num_workers=1,
        dataset=dict(
            type=CocoDetection,
            root='coco_mini480',
            annotations='annotations/instances_val2017.json',
            images='val2017',
            name='coco_mini480',
            evaluation=True,
            transforms=dict(resize=dict(type=ResizeTo, size=256)),
        ),
    ),
    imagenette=dict(
        batch_size=30,
        num_workers=1,
        dataset=dict(
            type=ClassificationDataset,
            root='imagenette160',
            folder='val',
            wordnet='imagenet1k',
            name='imagenette',
            transforms=dict(crop=dict(type=EvaluationCrop, size=224, crop_pct=0.9, interpolation='bicubic')),
        ),
    ),
)
val_evaluator = dict(
    camvid=[dict(type=MeanIoU, head='sem')],
    coco_mini480=[dict(type=CocoAP, head='det', engine='auto')],
    imagenette=[dict(type=Accuracy, head='cls')],
)
