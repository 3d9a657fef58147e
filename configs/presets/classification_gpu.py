"""Preset of `vitdense finetune`: classification on a GPU of 10 GiB or more.

    python tools/train.py configs/presets/classification_gpu.py --data FOLDER

A whole DINOv2 ViT-S/14 is fine-tuned on crops of 224 pixels: layer decay 0.75, drop path 0.1, mixup 0.8, cutmix 1.0,
label smoothing 0.1, averaged weights, batches of 64.

No published number.

Cost: not measured.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_finetuned import *
    from .._base_.datasets.imagenette import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_small_patch14_dinov2.lvd142m', img_size=224)
model.network.branches.cls.adapter.update(normed=True)
model.network.branches.cls.head.update(pool='token', norm='none')
train_dataloader.update(batch_size=64, num_workers=4)
val_dataloader.update(num_workers=2)
optim_wrapper.optimizer.update(lr=5e-4)
optim_wrapper.groups.update(decay=0.75)
optim_wrapper.accumulative_counts = 1
schedule = dict(max_iters=1500, val_interval=500, warmup_iters=100, decay='cosine')
checkpoint.update(interval=500, best='cls/top1')
ema = dict(momentum=0.002)
