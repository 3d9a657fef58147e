"""CamVid in the SegNet layout: 367 + 101 driving scenes of 480 x 360, 11 classes, raw label 11 is ignored."""

from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.transforms.common import PhotometricDistortion, RandomCrop, RandomFlip, RandomResize
from vitdense.metrics.miou import MeanIoU

data_root = 'data/camvid'

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        type=SegmentationDataset,
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
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type=SegmentationDataset,
        images='images/validation',
        labels='annotations/validation',
        classes='classes.txt',
        ignore=11,
        evaluation=True,
        transforms=dict(),
    ),
)
val_evaluator = [dict(type=MeanIoU, head='sem')]
