"""ADE20K (SceneParse150): `data/ADEChallengeData2016`, raw label 0 is ignored, 1 ... 150 are the classes.

Training images are resized by 0.5 ... 2.0 of 2048 x 512, cropped to 512, mirrored, distorted in colour, and padded to
512 x 512 with zeros after normalisation; validation images keep their aspect ratio with a short side of 512. Nothing is
antialiased. This is the pipeline of mmsegmentation (configs/_base_/datasets/ade20k.py, whose resize is OpenCV's and
whose padding follows the normalisation) and of what was trained with it: DINOv2, ViT-Adapter, MAE with UPerNet, DPT.
"""

from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.transforms.common import (
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    ResizeShortSide,
)
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
            resize=dict(type=RandomResize, scale=(2048, 512), ratio=(0.5, 2.0), antialias=False),
            crop=dict(type=RandomCrop, size=(512, 512), max_category_fraction=0.75, fill=None),
            flip=dict(type=RandomFlip),
            color=dict(type=PhotometricDistortion),
            pad=dict(type=Pad, size=512, after_normalisation=True),
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
        transforms=dict(resize=dict(type=ResizeShortSide, size=512, max_size=2048, antialias=False)),
    ),
)
val_evaluator = [dict(type=MeanIoU, head='sem')]
