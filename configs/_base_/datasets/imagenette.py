"""Imagenette: `data/imagenette160`, 10 classes of ImageNet in folders of WordNet ids below train/ and val/.

Any size of it will do (160, 320, full): crops are of 224 pixels.
"""

from torchvision.transforms.v2 import RandomResizedCrop

from vitdense.data.classification import ClassificationDataset
from vitdense.data.transforms.common import RandomFlip
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.metrics.accuracy import Accuracy

data_root = 'data/imagenette160'

train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        type=ClassificationDataset,
        folder='train',
        wordnet='imagenet1k',
        transforms=dict(
            crop=dict(type=RandomResizedCrop, size=224, scale=(0.35, 1.0), interpolation=3),
            flip=dict(type=RandomFlip),
        ),
    ),
)
val_dataloader = dict(
    batch_size=30,
    num_workers=1,
    dataset=dict(
        type=ClassificationDataset,
        folder='val',
        wordnet='imagenet1k',
        transforms=dict(crop=dict(type=EvaluationCrop, size=224, crop_pct=0.9, interpolation='bicubic')),
    ),
)
val_evaluator = [dict(type=Accuracy, head='cls')]
