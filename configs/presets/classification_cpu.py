"""Preset of `vitdense finetune`: classification on a CPU, or on a GPU of less than 10 GiB.

    python tools/train.py configs/presets/classification_cpu.py --data FOLDER

A whole ViT-Ti/16 is fine-tuned on crops of 224 pixels: layer decay 0.75, drop path 0.1, mixup 0.8, cutmix 1.0, label
smoothing 0.1, averaged weights, batches of 32. No worker loads data, so that training has all cores.

No published number.

Cost: about 10 minutes on 2 CPU cores.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_finetuned import *
    from .._base_.datasets.imagenette import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k')
model.network.branches.cls.adapter.update(normed=True)
model.network.branches.cls.head.update(pool='token', norm='none')
train_dataloader.update(num_workers=0)
val_dataloader.update(num_workers=0)
optim_wrapper.optimizer.update(lr=5e-4)
optim_wrapper.groups.update(decay=0.75)
optim_wrapper.accumulative_counts = 1
schedule = dict(max_iters=160, val_interval=80, warmup_iters=20, decay='cosine')
checkpoint.update(interval=80, best='cls/top1')
ema = dict(momentum=0.01)
