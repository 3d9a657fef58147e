"""LW-DETR medium: ten blocks of width 384; images of 640 x 640, COCO.

    python tools/train.py configs/detection/lw_detr_medium_coco.py

No published number from random weights: the published model reaches 52.5 AP after 30 epochs of Objects365 and these 60;
expect less. Its weights come in by `tools/import_weights.py lw-detr`, and `--weights` begins with them. Recipe: see
`_base_/lw_detr.py`; 13 groups of queries in training, AdamW 1e-4, ViT 1.5e-4, layer decay 0.7, batches of 16.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.lw_detr import *

model.network.backbone.update(name='deit_small_patch16_224')
optim_wrapper.groups.update(decay=0.7)
train_dataloader.update(batch_size=4)
