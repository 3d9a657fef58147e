"""Two-stage Deformable-DETR on four levels that a projector makes of four layers of a plain ViT."""

from torch.optim import AdamW

from vitdense.adapters.projector import Projector
from vitdense.backbones.vit import ViT
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.queries import QuerySelection
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import Focal
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_small_patch14_dinov2.lvd142m', pretrained=True, patch_size=16, drop_path=0.2),
        branches=dict(
            det=dict(
                adapter=dict(type=Projector, layers=(2, 5, 8, 11), scales=(2.0, 1.0, 0.5)),
                head=dict(type=DeformableDetrHead, num_levels=4, selection=dict(type=QuerySelection)),
            )
        ),
    ),
    tasks=dict(det=dict(type=DetectionTask, classification=dict(type=Focal, weight=2.0), top_k=300)),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    groups=dict(type=LayerDecay, decay=0.7, lr_of=dict(sampling_offsets=0.1)),
    clip_grad=dict(max_norm=0.1),
    accumulative_counts=1,
)
