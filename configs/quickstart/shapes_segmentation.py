"""Synthetic shapes, segmentation: a small ViT from scratch, with no network, no data set and no GPU.

    python tools/train.py configs/quickstart/shapes_segmentation.py

Aims at mIoU >= 0.75 on 200 fixed images in under 3 minutes on 2 CPU cores. There is no published number: the scenes
are synthetic.
"""

from mmengine.config import read_base
from torch.optim import AdamW

with read_base():
    from .._base_.datasets.shapes import *
    from .._base_.runtime import *

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.linear import LinearHead
from vitdense.metrics.miou import MeanIoU
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(
            type=ViT,
            name='vit_tiny_patch16_224',
            pretrained=False,  # or a file, such as the encoder that shapes_mae.py leaves
            patch_size=8,
            img_size=64,
            timm_args=dict(embed_dim=128, depth=3, num_heads=4),
        ),
        branches=dict(sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='layer'))),
    ),
    tasks=dict(sem=dict(type=SemanticTask)),
)
val_evaluator = [dict(type=MeanIoU, head='sem')]
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.05),
    groups=dict(type=LayerDecay),
    clip_grad=dict(max_norm=1.0),
)
schedule = dict(max_iters=700, val_interval=350, warmup_iters=50, decay='cosine')
checkpoint.update(interval=350)
