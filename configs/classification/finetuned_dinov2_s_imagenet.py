"""Fine-tuning of DINOv2 ViT-S/14, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_dinov2_s_imagenet.py

No published number: DINOv2 reports fine-tuning for ViT-g only (88.5 at 224 pixels); with this backbone frozen, a linear
layer has 81.1. MAE's recipe with smaller steps: class token and average of the tokens; AdamW 5e-4, weight decay 0.05,
layer decay 0.65, drop path 0.1, 5 epochs of warm-up, cosine to 1e-6, 50 epochs of batches of 1024; RandAugment, mixup
0.8, cutmix 1.0, erasing 0.25, label smoothing 0.1, averaged weights (0.9999).

One update is 8 batches of 128 images, which the processes share. Where 1024 images fit at once, as on 8 GPUs, set
train_dataloader.batch_size=1024 optim_wrapper.accumulative_counts=1 schedule.warmup_iters=6255.

Cost: about 60 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_finetuned import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_small_patch14_dinov2.lvd142m')
model.network.branches.cls.adapter.update(normed=True)
model.network.branches.cls.head.update(pool='both', norm='none')
optim_wrapper.optimizer.update(lr=5e-4)
schedule = dict(max_epochs=50, val_interval=5, warmup_iters=50_045, warmup_ratio=0.0, decay='cosine', min_ratio=2e-3)
checkpoint.update(interval=1, best='cls/top1')
ema = dict(momentum=1e-4)
