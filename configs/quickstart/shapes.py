"""Drawn shapes: boxes, segmentation and a class from one ViT pass, from scratch, with no data set and no GPU.

    python tools/train.py configs/quickstart/shapes.py

Aims at AP >= 0.45, mIoU >= 0.70 and top-1 >= 0.90 on 200 fixed drawings in under 4 minutes on 2 CPU cores. The class of
a drawing is the shape of its largest object. There is no published number: the scenes are drawn by vitdense itself.
The same, one task at a time: shapes_detection.py, shapes_segmentation.py, shapes_classification.py.
"""

from mmengine.config import read_base
from torch.optim import AdamW

with read_base():
    from .._base_.runtime import *

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms import RandomFlip
from vitdense.engine.optim import LayerDecay
from vitdense.heads.classify import ClassHead
from vitdense.heads.deformable_detr import DeformableDetrHead
from vitdense.heads.linear import LinearHead
from vitdense.metrics.accuracy import Accuracy
from vitdense.metrics.coco import CocoAP
from vitdense.metrics.miou import MeanIoU
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.semantic import SemanticTask

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
                    hidden=192,
                    dropout=0.0,
                    num_queries=20,
                    two_stage=True,
                    class_agnostic=False,
                    mixed_selection=True,
                    anchors=True,
                    look_forward_twice=True,
                    denoising=True,
                ),
            ),
            sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='layer')),
            cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='attention', num_heads=4)),
        ),
    ),
    tasks=dict(
        det=dict(type=DetectionTask, proposals_per_object=4, denoising=dict(type=Denoising, num_queries=12), top_k=20),
        sem=dict(type=SemanticTask),
        cls=dict(type=ClassificationTask),
    ),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        type=ShapesScenes,
        num_images=4096,
        split='train',
        size=64,
        num_objects=(1, 3),
        radius=(8, 18),
        background=(30, 100),
        foreground=(130, 255),
        occlusion=False,
        transforms=[dict(type=RandomFlip)],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=1,
    dataset=dict(
        type=ShapesScenes,
        num_images=200,
        split='val',
        size=64,
        num_objects=(1, 3),
        radius=(8, 18),
        background=(30, 100),
        foreground=(130, 255),
        occlusion=False,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type=CocoAP, head='det'), dict(type=MeanIoU, head='sem'), dict(type=Accuracy, head='cls')]
test_evaluator = val_evaluator
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05),
    groups=dict(type=LayerDecay),
    clip_grad=dict(max_norm=1.0),
)
amp = 'off'  # on maps this small float32 is as fast as bf16
schedule = dict(max_iters=800, val_interval=400, warmup_iters=100, decay='cosine')
checkpoint.update(interval=400, best=['det/AP', 'sem/mIoU', 'cls/top1'])  # their mean
