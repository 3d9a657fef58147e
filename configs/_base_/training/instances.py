"""Training of a trained model of instance masks on other data: `train.py --model MODEL --data FOLDER`, which brings
the model.

Sizes are those of images of 640 pixels; they are scaled to the size at which the model is evaluated. AdamW 1e-4 with
layer decay 0.8, gradients clipped at 0.01 (EoMT's), 2000 steps of 4 images.
"""

from torch.optim import AdamW

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.transforms.common import Pad, RandomFlip, ResizeShortSide
from vitdense.data.transforms.detection import LargeScaleJitter
from vitdense.metrics.average_precision import CocoAP
from vitdense.train.optim import LayerDecay

train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    dataset=dict(
        type=CocoDetection,
        annotations='',
        images='',
        masks=True,
        drop_empty=True,
        transforms=dict(
            flip=dict(type=RandomFlip),
            jitter=dict(type=LargeScaleJitter, size=640, ratio=(0.5, 2.0), fill=0, require_labels=True),
        ),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    dataset=dict(
        type=CocoDetection,
        annotations='',
        images='',
        masks=True,
        evaluation=True,
        transforms=dict(resize=dict(type=ResizeShortSide, size=640, max_size=640), pad=dict(type=Pad, size=640)),
    ),
)
val_evaluator = [dict(type=CocoAP, head='det', engine='auto', iou_type='segm')]
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.8),
    clip_grad=dict(max_norm=0.01),
    accumulative_counts=1,
)
schedule = dict(max_iters=2000, val_interval=500, warmup_iters=50, decay='cosine')
checkpoint = dict(interval=500, keep=2, best='det/segm/AP', rule='greater')
