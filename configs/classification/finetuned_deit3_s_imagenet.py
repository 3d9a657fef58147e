"""Fine-tuning of DeiT III ViT-S/16 at 384 pixels, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_deit3_s_imagenet.py

Aims at 83.4 top-1 (facebookresearch/deit, README_revenge.md; the checkpoint it begins with has 81.4 at 224 pixels).
Recipe: the checkpoint's own classifier goes on; AdamW at a constant 1e-5 after 5 epochs of warm-up (DeiT's cosine ends
at 1e-5 as well), weight decay 0.1, no layer decay, no drop path, 20 epochs of batches of 512; RandAugment, mixup 0.8,
cutmix 1.0, label smoothing 0.1; validation on whole images of 384.

One update is 8 batches of 64 images, which the processes share. Where 512 images fit at once, as on 8 GPUs, set
train_dataloader.batch_size=512 optim_wrapper.accumulative_counts=1 schedule.warmup_iters=12_511.

Cost: about 60 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_finetuned import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *

model.network.backbone.update(name='deit3_small_patch16_224.fb_in1k', img_size=384, drop_path=0.0)
model.network.branches.cls.adapter.update(normed=True)
model.network.branches.cls.head.update(pool='token', norm='none', pretrained=True)
model.augment.update(erase=0.0)
optim_wrapper.optimizer.update(lr=1e-5, weight_decay=0.1)
optim_wrapper.groups.update(decay=1.0)
train_dataloader.batch_size = 64
train_dataloader.dataset.transforms.crop.update(size=384)
val_dataloader.batch_size = 64
val_dataloader.dataset.transforms.crop.update(size=384, crop_pct=1.0)
schedule = dict(max_epochs=20, val_interval=2, warmup_iters=100_090, warmup_ratio=0.1, decay='constant')
checkpoint.update(interval=1, best='cls/top1')
