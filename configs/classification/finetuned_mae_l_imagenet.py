"""Fine-tuning of MAE ViT-L/16, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_mae_l_imagenet.py

Aims at 85.95 top-1 (facebookresearch/mae, FINETUNE.md; four seeds: 85.87 +- 0.07). The recipe is that of the ViT-B
config with 4e-3 (1e-3 for 256 images), layer decay 0.75, drop path 0.2 and 50 epochs.

Cost: about 280 V100 hours (the published 8 h 52 min on 32 of them).
"""

from mmengine.config import read_base

with read_base():
    from .finetuned_mae_b_imagenet import *

model.network.backbone.update(name='vit_large_patch16_224.mae', drop_path=0.2)
optim_wrapper.optimizer.update(lr=4e-3)
optim_wrapper.groups.update(decay=0.75)
schedule.update(max_epochs=50, min_ratio=2.5e-4)
