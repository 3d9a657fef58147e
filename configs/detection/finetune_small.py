"""A few hundred pictures of your own: two-stage Deformable-DETR on a small ViT that rests first and then learns too.

    python tools/train.py configs/detection/finetune_small.py

One GPU, or a CPU and some patience. For your own data give the folder and the two annotation files:
--cfg-options data_root=FOLDER train_dataloader.dataset.annotations=TRAIN.json train_dataloader.dataset.images=TRAIN
val_dataloader.dataset.annotations=VAL.json val_dataloader.dataset.images=VAL
Without network, put a local file in place of the hub's: model.network.backbone.pretrained=WEIGHTS.safetensors

No published number. Recipe: DINOv2 ViT-S with patches of 16 at a short side of 256 ... 448; 100 queries, denoising,
three decoder layers and no encoder on strides 8, 16 and 32; each object trains four proposals. AdamW 2e-4, ViT at a
tenth with layer decay 0.8, the first 500 of 2500 steps of 8 pictures with the ViT at rest.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_mini480 import *
    from .._base_.deformable_detr import *
    from .._base_.runtime import *

from vitdense.engine.freezing import UnfreezeHook
from vitdense.tasks.denoising import Denoising

model.network.backbone.update(drop_path=0.1)
model.network.branches.det.head.update(
    num_levels=3,
    num_encoder_layers=0,
    num_decoder_layers=3,
    num_queries=100,
    dropout=0.0,
    class_agnostic=False,
    mixed_selection=True,
    anchors=True,
    final_norm=True,
    denoising=True,
)
model.tasks.det.update(denoising=dict(type=Denoising, num_queries=50), proposals_per_object=4)
optim_wrapper.optimizer.update(lr=2e-4)
optim_wrapper.groups.update(decay=0.8, backbone_lr=0.1)
schedule = dict(max_iters=2_500, val_interval=500, warmup_iters=100, decay='cosine')
custom_hooks = [dict(type=UnfreezeHook, steps=(500,))]
checkpoint.update(interval=500, best='det/AP')
