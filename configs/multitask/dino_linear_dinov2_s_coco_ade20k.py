"""Boxes and a segmentation map from one pass of a fine-tuned DINOv2 ViT-S, trained on COCO and ADE20K together.

    python tools/train.py configs/multitask/dino_linear_dinov2_s_coco_ade20k.py

No published number. Recipe: DINO's two-stage detector, whose decoder layers share their predictors, on one simple
feature pyramid (patches of 16, strides 4 ... 64), a linear head with layer norm on another; AdamW 1e-4, ViT at a tenth
of it, gradients of the ViT and of each branch clipped at 0.1, 135 000 batches of 16 images of one data set each: 12
epochs of COCO, 36 of ADE20K. The best checkpoint is that of the mean of AP and mIoU. Heads have no batch normalisation:
it would see the images of both data sets in training.

With one process a batch of 16 images is of one data set; with several, each takes its share of the 16 from a data set
of its own, so that a batch has both. For both in every update of one process set optim_wrapper.accumulative_counts=3.
For learned weights of the two losses add --cfg-options
"+model.loss_weights=dict(type='vitdense.layers.loss_weights.UncertaintyWeights')"; to measure the
cosine similarity of their gradients on the ViT, "custom_hooks=[dict(
type='vitdense.train.hooks.task_gradients.TaskGradientHook', interval=500, batches=3)]".

Cost: not measured; the detector alone is about a day on eight 40 GB GPUs (`torchrun --nproc_per_node 8`: two images
each).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade20k import *
    from .._base_.dino import *
    from .._base_.runtime import *

from vitdense.adapters.pyramid import SimplePyramid
from vitdense.heads.linear import LinearHead
from vitdense.tasks.semantic import SemanticTask

model.network.backbone.update(name='vit_small_patch14_dinov2.lvd142m', patch_size=16, windows=None, timm_args=None)
model.network.branches.det.adapter = dict(type=SimplePyramid, channels=256, extra_level=True)
model.network.branches.det.head.decoding.update(shared_predictors=True)
model.network.branches.sem = dict(
    adapter=dict(type=SimplePyramid, channels=256), head=dict(type=LinearHead, norm='layer', dropout=0.1)
)
model.tasks.det.update(datasets=('coco',))
model.tasks.sem = dict(type=SemanticTask, datasets=('ade20k',))
optim_wrapper.groups.update(lr_of=None)
optim_wrapper.clip_grad.update(by_part=True)
schedule = dict(max_iters=135_000, val_interval=7_500, decay='step', milestones=(123_750,), gamma=0.1)
checkpoint.update(interval=7_500, best=('det/AP', 'sem/mIoU'))
