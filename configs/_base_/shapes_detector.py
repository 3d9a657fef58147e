"""A small detector that trains in minutes: convolutions before a ViT of three blocks, stride 8, two stages."""

from torch.optim import AdamW

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
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
            name='vit_tiny_patch16_224',
            patch_size=8,
            img_size=64,
            stem='conv',
            timm_args=dict(embed_dim=96, depth=3, num_heads=4),
        ),
        branches=dict(
            det=dict(
                adapter=dict(type=PlainMaps),
                head=dict(
                    type=DeformableDetrHead,
                    channels=96,
                    num_levels=1,
                    num_encoder_layers=0,
                    num_decoder_layers=2,
                    num_heads=4,
                    ffn_dim=192,
                    dropout=0.0,
                    num_queries=20,
                    selection=dict(type=QuerySelection, content='learned', class_agnostic=False),
                    decoding=dict(type=BoxDecoding, anchors=True, look_forward_twice=True),
                    denoising=True,
                ),
            )
        ),
    ),
    tasks=dict(
        det=dict(
            type=DetectionTask,
            proposals_per_object=4,
            denoising=dict(type=Denoising, num_queries=12),
            top_k=20,
        )
    ),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05),
    groups=dict(type=LayerDecay),
    clip_grad=dict(max_norm=1.0),
)
