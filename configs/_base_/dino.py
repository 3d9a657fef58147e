"""DINO on the simple feature pyramid of a plain ViT: two-stage queries, denoising, six encoder and decoder layers."""

from torch.optim import AdamW

from vitdense.adapters.pyramid import SimplePyramid
from vitdense.backbones.vit import ViT
from vitdense.backbones.windows import WindowPartition
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import QuerySelection
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.detection import DetectionTask
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(
            type=ViT,
            name='vit_base_patch16_224.mae',
            pretrained=True,
            drop_path=0.1,
            windows=dict(type=WindowPartition, size=14, global_blocks=(2, 5, 8, 11)),
            timm_args=dict(class_token=False),
        ),
        branches=dict(
            det=dict(
                adapter=dict(type=SimplePyramid, channels=256, scales=(2.0, 1.0, 0.5), extra_level=True),
                head=dict(
                    type=DeformableDetrHead,
                    num_queries=900,
                    ffn_dim=2048,
                    dropout=0.0,
                    selection=dict(type=QuerySelection, content='learned', class_agnostic=False),
                    decoding=dict(type=BoxDecoding, anchors=True, look_forward_twice=True, final_norm=True),
                    denoising=True,
                ),
            )
        ),
    ),
    tasks=dict(
        det=dict(
            type=DetectionTask,
            denoising=dict(type=Denoising, num_queries=100, label_noise=0.5, box_noise=1.0),
            top_k=300,
        )
    ),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    groups=dict(type=LayerDecay, backbone_lr=0.1, no_decay=('norm',), lr_of=dict(adapters=0.1)),
    clip_grad=dict(max_norm=0.1),
    accumulative_counts=1,
)
