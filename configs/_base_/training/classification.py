"""Training of a trained classifier on other data: `train.py --model MODEL --data FOLDER`, which brings the model.

Sizes are those of crops of 224 pixels; they are scaled to the size at which the model is evaluated. AdamW 5e-4 with
layer decay 0.75, gradients clipped at 1.0, 1000 steps of 32 images.
"""

from torch.optim import AdamW
from torchvision.transforms.v2 import RandomResizedCrop

from vitdense.data.classification import ClassificationDataset
from vitdense.data.transforms.common import RandomFlip
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.metrics.accuracy import Accuracy
from vitdense.train.optim import LayerDecay

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    dataset=dict(
        type=ClassificationDataset,
        folder='',
        transforms=dict(
            crop=dict(type=RandomResizedCrop, size=224, scale=(0.35, 1.0), interpolation=3),  # 3: bicubic
            flip=dict(type=RandomFlip),
        ),
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    dataset=dict(type=ClassificationDataset, folder='', transforms=dict(crop=dict(type=EvaluationCrop, size=224))),
)
val_evaluator = [dict(type=Accuracy, head='cls')]
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.75),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts=1,
)
schedule = dict(max_iters=1000, val_interval=250, warmup_iters=50, decay='cosine')
checkpoint = dict(interval=250, keep=2, best='cls/top1', rule='greater')
