"""A small two-stage detector on a ViT-Ti/16: three levels of four layers, 100 queries, denoising, no encoder."""

from torch.optim import AdamW

from vitdense.adapters.projector import Projector
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
            type=ViT, name='vit_tiny_patch16_224.augreg_in21k_ft_in1k', pretrained=True, frozen=False, drop_path=0.0
        ),
        branches=dict(
            det=dict(
                adapter=dict(type=Projector, layers=(2, 5, 8, 11), scales=(2.0, 1.0, 0.5), channels=128, num_blocks=1),
                head=dict(
                    type=DeformableDetrHead,
                    channels=128,
                    num_levels=3,
                    num_encoder_layers=0,
                    num_decoder_layers=2,
                    ffn_dim=512,
                    dropout=0.0,
                    num_queries=100,
                    selection=dict(type=QuerySelection, content='learned', class_agnostic=False),
                    decoding=dict(type=BoxDecoding, anchors=True, final_norm=True),
                    denoising=True,
                ),
            ),
        ),
    ),
    tasks=dict(
        det=dict(type=DetectionTask, denoising=dict(type=Denoising, num_queries=50), proposals_per_object=4),
    ),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=4e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    groups=dict(type=LayerDecay, decay=0.8, backbone_lr=0.3),
    clip_grad=dict(max_norm=0.1),
    accumulative_counts=1,
)
