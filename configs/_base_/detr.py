"""The original DETR on the last layer of a plain ViT."""

from torch.optim import AdamW

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.detr.detr import DetrHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import SoftmaxCrossEntropy
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_small_patch14_dinov2.lvd142m', pretrained=True, patch_size=16),
        branches=dict(det=dict(adapter=dict(type=PlainMaps), head=dict(type=DetrHead, num_queries=100))),
    ),
    tasks=dict(det=dict(type=DetectionTask, classification=dict(type=SoftmaxCrossEntropy, no_object_weight=0.1))),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    groups=dict(type=LayerDecay, backbone_lr=0.1, no_decay=()),
    clip_grad=dict(max_norm=0.1),
    accumulative_counts=1,
)
