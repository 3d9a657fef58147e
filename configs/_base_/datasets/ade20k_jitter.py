"""ADE20K as EoMT and benchmark-vfm-ss prepare it: jittered in colour, mirrored, scaled and cropped to 512.

`data/ADEChallengeData2016`, raw label 0 is ignored, 1 ... 150 are the classes. Training images are resized to fit
inside 0.5 ... 2.0 of 512 x 512, padded with black and cropped (tue-mps/benchmark-vfm-ss and tue-mps/eomt,
datasets/transforms.py); validation images keep their aspect ratio with a short side of 512.
"""

from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.transforms.common import ColorJitter, RandomFlip, ResizeShortSide
from vitdense.data.transforms.detection import LargeScaleJitter
from vitdense.metrics.miou import MeanIoU

data_root = 'data/ADEChallengeData2016'

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    dataset=dict(
        type=SegmentationDataset,
        images='images/training',
        labels='annotations/training',
        classes='ade20k',
        reduce_zero_label=True,
        transforms=dict(
            color=dict(type=ColorJitter, brightness=32 / 255, contrast=0.5, saturation=0.5, hue=18 / 360),
            flip=dict(type=RandomFlip),
            jitter=dict(type=LargeScaleJitter, size=512, ratio=(0.5, 2.0), fill=0, require_labels=True),
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    dataset=dict(
        type=SegmentationDataset,
        images='images/validation',
        labels='annotations/validation',
        classes='ade20k',
        reduce_zero_label=True,
        evaluation=True,
        transforms=dict(resize=dict(type=ResizeShortSide, size=512)),
    ),
)
val_evaluator = [dict(type=MeanIoU, head='sem')]
