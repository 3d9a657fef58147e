"""Preset of `vitdense finetune`: semantic segmentation on a CPU, or on a GPU of less than 10 GiB.

    python tools/train.py configs/presets/semantic_cpu.py --data FOLDER

UPerNet on a fine-tuned ViT-Ti/16: batches of 8 windows of 320 from images with a short side of 192 ... 768; images are
evaluated with a short side of 384. No worker loads data, so that training has all cores.

No published number.

Cost: about 40 minutes on 2 CPU cores.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.camvid import *
    from .._base_.runtime import *
    from .._base_.upernet import *

from vitdense.data.transforms.common import ResizeShortSide

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k')
model.network.branches.sem.adapter.update(layers=(2, 5, 8, 11))
model.network.branches.sem.head.update(channels=64, aux_channels=64)
model.tiler = None
train_dataloader.update(num_workers=0)
train_dataloader.dataset.transforms.resize.update(scale=(1536, 384), ratio=(0.5, 2.0))
val_dataloader.update(batch_size=1, num_workers=0)
val_dataloader.dataset.transforms = dict(resize=dict(type=ResizeShortSide, size=384, max_size=1536))
optim_wrapper.optimizer.update(lr=3e-4)
optim_wrapper.groups.update(decay=0.8, head_lr=15)
schedule = dict(max_iters=800, val_interval=400, warmup_iters=80, decay='poly', power=0.9)
checkpoint.update(interval=400)
