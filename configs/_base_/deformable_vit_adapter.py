"""Two-stage Deformable-DETR on a ViT-Adapter around a fine-tuned ViT, the published detection variant
(czczup/ViT-Adapter, detection)."""

from torch.optim import AdamW

from vitdense.adapters.plain import BackboneMaps
from vitdense.adapters.vit_adapter import ViTAdapter
from vitdense.backbones.vit import ViT
from vitdense.backbones.windows import WindowPartition
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
        backbone=dict(
            type=ViTAdapter,
            vit=dict(
                type=ViT,
                name='deit_small_patch16_224.fb_in1k',
                pretrained=True,
                drop_path=0.2,
                windows=dict(type=WindowPartition, size=14, global_blocks=4),
                # LayerScale that begins at 1 where the file has none (mmdet_custom/models/backbones/base/vit.py)
                partial_weights=('ls1', 'ls2'),
                timm_args=dict(class_token=False, init_values=1.0),
            ),
            num_heads=6,
            deform_ratio=1.0,
            drop_path=0.2,
            add_features='last',
            detail=False,
        ),
        branches=dict(
            det=dict(
                adapter=dict(type=BackboneMaps),
                head=dict(type=DeformableDetrHead, num_levels=4, selection=dict(type=QuerySelection)),
            )
        ),
    ),
    tasks=dict(det=dict(type=DetectionTask, classification=dict(type=Focal, weight=2.0), top_k=300)),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, no_decay=('norm', 'bias', 'level_embed', 'pos_embed')),
    clip_grad=dict(max_norm=0.1),
    accumulative_counts=1,
)
