"""Synthetic shapes, classification: A small ViT from scratch, with no data set and no GPU.

    python tools/train.py configs/quickstart/shapes_classification.py

Aims at top-1 >= 0.95 on 300 fixed images in under 2 minutes on 2 CPU cores. There is no published number: the scenes
are synthetic.
"""

from mmengine.config import read_base
from torch.optim import AdamW

with read_base():
    from .._base_.datasets.shapes import *
    from .._base_.runtime import *

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.classify import ClassHead
from vitdense.metrics.accuracy import Accuracy
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.classification import ClassificationTask
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(
            type=ViT,
            name='vit_tiny_patch16_224',
            patch_size=8,
            img_size=64,
            timm_args=dict(embed_dim=128, depth=3, num_heads=4),
        ),
        branches=dict(cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='average'))),
    ),
    tasks=dict(cls=dict(type=ClassificationTask)),
)
train_dataloader.dataset.update(num_images=8192, num_objects=(1, 1), radius=(12, 24), occlusion=True)
val_dataloader.dataset.update(num_images=300, num_objects=(1, 1), radius=(12, 24), occlusion=True)
val_evaluator = [dict(type=Accuracy, head='cls')]
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.05),
    groups=dict(type=LayerDecay),
    clip_grad=dict(max_norm=1.0),
)
schedule = dict(max_iters=400, val_interval=200, warmup_iters=50, decay='cosine')
checkpoint.update(interval=200, best='cls/top1')
