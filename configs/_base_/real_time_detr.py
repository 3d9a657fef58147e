"""The real-time detector for plain ViTs (RF-DETR, LW-DETR): no encoder, one map, few decoder layers, groups of queries.

Head and projector equal those of rfdetr (transformers' RfDetr adds another epsilon to the variances of the projector's
norms). The ViT attends within 2 x 2 windows, each with a class token of its own, except in three blocks; the learning
rates fall from layer to layer by 0.8, and by 0.7 from the box and class layers to the decoder and again to the ViT
(roboflow/rf-detr, rfdetr/util/get_param_dicts.py, rfdetr/models/backbone/backbone.py). Weight decay spares the norms,
biases and embeddings of the ViT and nothing else; 300 detections of an image.

Differs from the source in: queries encode their boxes in coordinates of the image, not of the padded batch, so that a
padded batch gives the outputs of the single image; the final norm of the ViT learns at 0.8 of their rate.
"""

from torch.optim import AdamW

from vitdense.adapters.projector import Projector
from vitdense.backbones.vit import ViT
from vitdense.backbones.windows import WindowPartition
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import QuerySelection
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import IouAware
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(
            type=ViT,
            name='vit_small_patch14_dinov2.lvd142m',
            pretrained=True,
            patch_size=16,
            windows=dict(type=WindowPartition, split=2, global_blocks=(3, 6, 9), prefix='each'),
        ),
        branches=dict(
            det=dict(
                adapter=dict(type=Projector, layers=(2, 5, 8, 11), num_blocks=3, norm_eps=1e-6),
                head=dict(
                    type=DeformableDetrHead,
                    num_levels=1,
                    norm='none',
                    num_encoder_layers=0,
                    num_decoder_layers=3,
                    num_heads=8,
                    cross_heads=16,
                    num_points=2,
                    ffn_dim=2048,
                    dropout=0.0,
                    num_queries=300,
                    groups=13,
                    selection=dict(
                        type=QuerySelection, content='learned', class_agnostic=False, learned_box_deltas=True
                    ),
                    decoding=dict(type=BoxDecoding, anchors=True, refine=False, relative=True, final_norm=True),
                ),
            )
        ),
    ),
    tasks=dict(det=dict(type=DetectionTask, classification=dict(type=IouAware), top_k=300)),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    groups=dict(
        type=LayerDecay,
        decay=0.8,
        backbone_lr=0.588,
        no_decay=(),
        # names with 'embeddings', 'bias' or 'norm' (rfdetr/models/backbone/backbone.py); LayerScale, lambda1, decays
        backbone_no_decay=('norm', 'bias', 'pos_embed', 'cls_token', 'reg_token', 'patch_embed'),
        lr_of={'layers': 0.7, 'position_encoder': 0.7, 'decoder.norm': 0.7},  # names with 'transformer.decoder'
    ),
    clip_grad=dict(max_norm=0.1),
    accumulative_counts=4,
)
