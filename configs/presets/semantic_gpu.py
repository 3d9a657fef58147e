"""Preset of `vitdense finetune`: semantic segmentation on a GPU of 10 GiB or more.

    python tools/train.py configs/presets/semantic_gpu.py --data FOLDER

UPerNet on a fine-tuned DINOv2 ViT-S run with patches of 16: batches of 16 windows of 512 from images with a short side
of 256 ... 1024; images are evaluated with a short side of 512, in windows.

No published number.

Cost: not measured.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.camvid import *
    from .._base_.runtime import *
    from .._base_.upernet import *

from vitdense.data.transforms.common import ResizeShortSide

model.network.backbone.update(name='vit_small_patch14_dinov2.lvd142m', patch_size=16)
model.network.branches.sem.head.update(channels=256, aux_channels=128)
train_dataloader.update(batch_size=16, num_workers=4)
train_dataloader.dataset.transforms.resize.update(scale=(2048, 512), ratio=(0.5, 2.0))
train_dataloader.dataset.transforms.crop.update(size=512)
val_dataloader.update(batch_size=1, num_workers=2)
val_dataloader.dataset.transforms = dict(resize=dict(type=ResizeShortSide, size=512, max_size=2048))
optim_wrapper.groups.update(decay=0.8, head_lr=5)
schedule = dict(max_iters=4000, val_interval=1000, warmup_iters=200, decay='poly', power=0.9)
checkpoint.update(interval=1000)
