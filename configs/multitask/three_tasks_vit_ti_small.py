"""Boxes, a segmentation map and a class from one pass of a fine-tuned ViT-Ti/16, trained on three small data sets.

    python tools/train.py configs/multitask/three_tasks_vit_ti_small.py

No published number. Recipe: 3000 batches of 8 images of one data set each: 1000 of CamVid, 1500 of COCO, 500 of
Imagenette. Every cell of the maps proposes all classes. AdamW 1e-3, ViT at a tenth of it with layer decay 0.8, the
linear head at twice; gradients of the ViT and of each branch clipped at 1.0. The best checkpoint is that of the mean of
mIoU, AP and top-1. After 1200 batches: mIoU 0.566, AP 0.021, top-1 0.980 (seed 0); docs/results.md has each task alone,
for which a weight of 0 leaves out a data set: train_dataloader.dataset.weights.camvid=0

Without network, put a local file in place of the hub's, and name the folder in which camvid, coco_mini480 and
imagenette160 are: --cfg-options model.network.backbone.pretrained=WEIGHTS.safetensors data_root=FOLDER
Norms and cosine similarities of the gradients of the tasks on the ViT:
"custom_hooks=[dict(type='vitdense.train.hooks.task_gradients.TaskGradientHook', interval=100, batches=6)]"

Cost: about an hour and a half of one CPU core.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.three_small_sets import *
    from .._base_.runtime import *
    from .._base_.small_detector import *

from vitdense.adapters.plain import PlainMaps
from vitdense.heads.classify import ClassHead
from vitdense.heads.linear import LinearHead
from vitdense.tasks.classification import ClassificationTask
from vitdense.tasks.semantic import SemanticTask

model.network.branches.det.head.selection.update(dense=True)
model.network.branches.update(
    sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='layer')),
    cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='token')),
)
model.tasks.update(sem=dict(type=SemanticTask), cls=dict(type=ClassificationTask, label_smoothing=0.1))
optim_wrapper.optimizer.update(lr=1e-3, weight_decay=0.05)
optim_wrapper.groups.update(backbone_lr=0.1, lr_of=dict(sem=2))
optim_wrapper.clip_grad.update(max_norm=1.0, by_part=True)
schedule = dict(max_iters=3_000, val_interval=600, warmup_iters=100, decay='cosine')
checkpoint.update(interval=600, best=('sem/mIoU', 'det/AP', 'cls/top1'))
