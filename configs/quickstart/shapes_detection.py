"""Synthetic shapes, detection: a small ViT and a two-stage DETR from scratch, with no network, no data set and no GPU.

    python tools/train.py configs/quickstart/shapes_detection.py

Aims at AP >= 0.60 on 200 fixed images in under 6 minutes on 2 CPU cores (seed 0: 0.67). There is no published
number: the scenes are synthetic. What lets a DETR learn so fast: convolutions before the ViT, stride 8,
proposals of which every object trains four, and denoising queries.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.shapes_detector import *

from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms.common import RandomFlip
from vitdense.metrics.average_precision import CocoAP

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        type=ShapesScenes,
        num_images=4096,
        split='train',
        size=64,
        num_objects=(1, 4),
        radius=(7, 16),
        noise=10,
        occlusion=True,
        transforms=dict(flip=dict(type=RandomFlip)),
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    dataset=dict(
        type=ShapesScenes,
        num_images=200,
        split='val',
        size=64,
        num_objects=(1, 4),
        radius=(7, 16),
        noise=10,
        occlusion=True,
    ),
)
val_evaluator = [dict(type=CocoAP, head='det')]
amp = 'off'  # on maps this small float32 is as fast as bf16
schedule = dict(max_iters=1600, val_interval=400, warmup_iters=100, decay='cosine')
checkpoint.update(interval=400, best='det/AP')
