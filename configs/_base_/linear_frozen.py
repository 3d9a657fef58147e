"""A linear head on the last layer of a frozen ViT: the probe that DINOv2 and DINOv3 report."""

from torch.optim import AdamW

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.linear import LinearHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask
from vitdense.test_time.sliding_window import Tiler
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_small_patch14_dinov2.lvd142m', pretrained=True, frozen=True),
        branches=dict(
            sem=dict(
                adapter=dict(type=PlainMaps, layers=(-1,), normed=True),
                head=dict(type=LinearHead, norm='batch', dropout=0.0),
            )
        ),
    ),
    tasks=dict(sem=dict(type=SemanticTask)),
    tiler=dict(type=Tiler, size=512, stride=341),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4),
    groups=dict(type=LayerDecay, no_decay=()),
    clip_grad=None,
    accumulative_counts=1,
)
