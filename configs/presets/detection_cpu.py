"""Preset of `vitdense finetune`: detection on a CPU, or on a GPU of less than 10 GiB.

    python tools/train.py configs/presets/detection_cpu.py --data FOLDER

The detector of `detection/finetune_small.py` at 448 pixels: a ViT-Ti/16 with a projector of four layers to strides 8,
16 and 32, two decoder layers, 100 queries that start at distinct boxes and 150 for denoising, dense proposals.
Batches of 4 images made square with sides of 320 ... 448, photometric distortion, drop path 0.1, weights averaged,
duplicates left out above an IoU of 0.7. No worker loads data, so that training has all cores.

No published number. On BCCD (205 images) AP is 0.609 and AP50 0.895, means of three seeds; see docs/results.md.

Cost: less than an hour of one CPU core.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_mini480 import *
    from .._base_.runtime import *
    from .._base_.small_detector import *

from vitdense.data.transforms.common import PhotometricDistortion, ResizeTo
from vitdense.tasks.detection_losses import Focal
from vitdense.train.hooks.unfreezing import UnfreezeHook

model.network.backbone.update(drop_path=0.1)
model.network.branches.det.head.selection.update(content='selected', dense=True, max_iou=0.8)
model.tasks.det.update(classification=dict(type=Focal, weight=2.0), nms_iou=0.7)
model.tasks.det.denoising.update(num_queries=150)
train_dataloader.update(batch_size=4, num_workers=0)
train_dataloader.dataset.transforms.resize.update(sizes=(320, 352, 384, 416, 448), square=True)
train_dataloader.dataset.transforms.update(color=dict(type=PhotometricDistortion))
val_dataloader.update(num_workers=0)
val_dataloader.dataset.transforms.resize = dict(type=ResizeTo, size=448)
optim_wrapper.optimizer.update(lr=1e-3)
optim_wrapper.groups.update(backbone_lr=0.2)
optim_wrapper.clip_grad.update(max_norm=1.0)
schedule = dict(max_iters=1500, val_interval=300, warmup_iters=50, decay='cosine')
custom_hooks = [dict(type=UnfreezeHook, steps=(100,))]
ema = dict(momentum=0.005)
checkpoint.update(interval=300, best='det/AP')
