"""Boxes, a segmentation map and a class from one pass of a fine-tuned ViT-Ti/16, trained on three small data sets.

    python tools/train.py configs/multitask/deformable_linear_class_vit_ti_camvid_coco_mini480_imagenette.py

No published number. Recipe: 3000 batches of 8 pictures of one data set each, which is as many of each as the configs of
one task have: 1000 of CamVid, 1500 of COCO, 500 of Imagenette. AdamW 4e-4, ViT at a quarter of it with layer decay 0.8,
the linear head at five times; gradients clipped at 1.0. The best checkpoint is that of the mean of mIoU, AP and top-1.

Without network, put a local file in place of the hub's, and say where the folders camvid, coco_mini480 and
imagenette160 are: --cfg-options model.network.backbone.pretrained=WEIGHTS.safetensors data_root=FOLDER
How the tasks pull the ViT:
"custom_hooks=[dict(type='vitdense.engine.gradients.TaskGradientHook', interval=100, batches=6)]"

Cost: about two hours on 2 CPU cores.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.camvid_coco_mini480_imagenette import *
    from .._base_.multitask_small import *
    from .._base_.runtime import *

schedule = dict(max_iters=3_000, val_interval=600, warmup_iters=100, decay='cosine')
checkpoint.update(interval=600, best=('sem/mIoU', 'det/AP', 'cls/top1'))
