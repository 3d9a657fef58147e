"""ImageNet-1k (ILSVRC 2012): `data/imagenet`, folders of WordNet ids below train/ and val/, 1000 classes.

Training images are random crops of 224 pixels, mirrored and changed by RandAugment (2 operations of magnitude 9, the
nearest that torchvision has to timm's rand-m9-mstd0.5-inc1); validation images are the middle 224 of 256 pixels.
"""

from torchvision.transforms.v2 import RandAugment, RandomResizedCrop

from vitdense.data.classification import ClassificationDataset
from vitdense.data.transforms.common import RandomFlip
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.metrics.accuracy import Accuracy

data_root = 'data/imagenet'

train_dataloader = dict(
    batch_size=128,
    num_workers=12,
    dataset=dict(
        type=ClassificationDataset,
        folder='train',
        classes='imagenet1k',
        transforms=dict(
            crop=dict(type=RandomResizedCrop, size=224, interpolation=3),  # 3: bicubic
            flip=dict(type=RandomFlip),
            augment=dict(type=RandAugment, num_ops=2, magnitude=9, interpolation=2),  # 2: bilinear
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(
        type=ClassificationDataset,
        folder='val',
        classes='imagenet1k',
        transforms=dict(crop=dict(type=EvaluationCrop, size=224, crop_pct=0.875, interpolation='bicubic')),
    ),
)
val_evaluator = [dict(type=Accuracy, head='cls')]
