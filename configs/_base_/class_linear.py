"""A linear classifier on a frozen ViT, trained as DINOv2 trains it: SGD with momentum, no weight decay."""

from torch.optim import SGD

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.classify import ClassHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.classification import ClassificationTask
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_small_patch14_dinov2.lvd142m', pretrained=True, frozen=True),
        branches=dict(cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='token'))),
    ),
    tasks=dict(cls=dict(type=ClassificationTask)),
)
optim_wrapper = dict(
    optimizer=dict(type=SGD, lr=0.02, momentum=0.9, weight_decay=0.0),
    groups=dict(type=LayerDecay),
    clip_grad=None,
    accumulative_counts=1,
)
