"""DINO on the simple feature pyramid of a MAE ViT-L/16, COCO, 50 epochs.

    python tools/train.py configs/detection/dino_mae_l_coco_50ep.py

Aims at 57.5 AP (detrex, pull request 138). Recipe: that of 12 epochs, for 375 000 steps, a tenth of the rate after
300 000.

Cost: about a week on eight 80 GB GPUs (`torchrun --nproc_per_node 8`: two images each).
"""

from mmengine.config import read_base

with read_base():
    from .dino_mae_b_coco_12ep import *

model.network.backbone.update(name='vit_large_patch16_224.mae', drop_path=0.4, checkpointing=True)
model.network.backbone.windows.update(global_blocks=(5, 11, 17, 23))
schedule.update(max_iters=375_000, milestones=(300_000,), warmup_iters=250, warmup_ratio=1e-3)
