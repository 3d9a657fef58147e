"""Fine-tuning of MAE ViT-B/16, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_mae_b_imagenet.py

Aims at 83.66 top-1 (facebookresearch/mae, FINETUNE.md; four seeds: 83.57 +- 0.08). Recipe: the average of the tokens,
layer norm and a linear layer initialised from N(0, 2e-5); AdamW 2e-3 (5e-4 for 256 images), weight decay 0.05, layer
decay 0.65, drop path 0.1, 5 epochs of warm-up, cosine to 1e-6, 100 epochs of batches of 1024; RandAugment, mixup 0.8,
cutmix 1.0, erasing 0.25, label smoothing 0.1.

One update is 8 batches of 128 images, which the processes share. Where 1024 images fit at once, as on 8 GPUs, set
train_dataloader.batch_size=1024 optim_wrapper.accumulative_counts=1 schedule.warmup_iters=6255.

Cost: about 230 V100 hours (the published 7 h 11 min on 32 of them).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_finetuned import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *

schedule = dict(
    max_epochs=100, val_interval=5, warmup_iters=50_045, warmup_ratio=0.0, decay='cosine', min_ratio=5e-4
)  # 5 epochs of 10 009 batches
checkpoint.update(interval=1, best='cls/top1')
