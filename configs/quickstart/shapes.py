"""Synthetic shapes: boxes, segmentation and a class from one ViT pass, from scratch, with no data set and no GPU.

    python tools/train.py configs/quickstart/shapes.py

Aims at AP >= 0.45, mIoU >= 0.70 and top-1 >= 0.90 on 200 fixed images in under 4 minutes on 2 CPU cores. The class of
an image is the shape of its largest object. There is no published number: the scenes are synthetic.
The same, one task at a time: shapes_detection.py, shapes_segmentation.py, shapes_classification.py.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.shapes import *
    from .._base_.runtime import *
    from .._base_.shapes_detector import *

from vitdense.adapters.plain import PlainMaps
from vitdense.data.transforms.common import RandomFlip
from vitdense.heads.classify import ClassHead
from vitdense.heads.linear import LinearHead
from vitdense.metrics.accuracy import Accuracy
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.miou import MeanIoU
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.semantic import SemanticTask

model.network.branches.update(  # beside `det`, on the same pass of the ViT
    sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='layer')),
    cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='attention', num_heads=4)),
)
model.tasks.update(sem=dict(type=SemanticTask), cls=dict(type=ClassificationTask))
train_dataloader.update(batch_size=16)
train_dataloader.dataset.update(transforms=dict(flip=dict(type=RandomFlip)))
val_evaluator = [dict(type=CocoAP, head='det'), dict(type=MeanIoU, head='sem'), dict(type=Accuracy, head='cls')]
amp = 'off'  # on maps this small float32 is as fast as bf16
schedule = dict(max_iters=800, val_interval=400, warmup_iters=100, decay='cosine')
checkpoint.update(interval=400, best=['det/AP', 'sem/mIoU', 'cls/top1'])  # their mean
