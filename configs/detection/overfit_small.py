"""Overfitting of a small detector on eight images of COCO, as a check of the training code.

    python tools/train.py configs/detection/overfit_small.py

It is evaluated on its training images, so its scores do not hold for others. To see whether annotations of your
own can be learned, give the folder and the file: --cfg-options data_root=FOLDER
train_dataloader.dataset.annotations=TRAIN.json train_dataloader.dataset.images=TRAIN
val_dataloader.dataset.annotations=TRAIN.json val_dataloader.dataset.images=TRAIN
Without network, put a local file in place of the hub's: model.network.backbone.pretrained=WEIGHTS.safetensors

Aims at AP50 >= 0.95 on the eight, in half an hour of one CPU core (seed 0: 0.986). No published number. Recipe: the
small detector, AdamW 4e-4 for 600 steps, ViT at 0.3 of it, neither flips nor crops, and no weight decay.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_mini480 import *
    from .._base_.runtime import *
    from .._base_.small_detector import *

from vitdense.data.transforms.common import ResizeTo

train_dataloader.dataset.transforms = dict(resize=dict(type=ResizeTo, size=320))
train_dataloader.dataset.update(num_images=8, drop_empty=True)
val_dataloader.dataset.transforms.resize = dict(type=ResizeTo, size=320)
val_dataloader.dataset.update(
    annotations='annotations/instances_train2017.json',
    images='train2017',
    num_images=8,
    drop_empty=True,
)
optim_wrapper.optimizer.update(weight_decay=0.0)
schedule = dict(max_iters=600, val_interval=200, warmup_iters=50, decay='cosine')
checkpoint.update(interval=200, best='det/AP')
