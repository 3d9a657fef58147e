"""LW-DETR xlarge: ten blocks of width 768, maps of strides 8 and 32; images of 640 x 640, COCO.

    python tools/train.py configs/detection/lw_detr_xlarge_coco.py

No published number from random weights: the published model reaches 58.3 AP after 30 epochs of Objects365 and these 60;
expect less. Its weights come in by `tools/import_weights.py lw-detr`, and `--weights` begins with them. Recipe: see
`_base_/lw_detr.py`; 13 groups of queries in training, AdamW 1e-4, ViT 1.5e-4, layer decay 0.75, 0.5 from component to
component, drop path 0.1, weight decay 1e-3, batches of 16.
"""

from mmengine.config import read_base

with read_base():
    from .lw_detr_large_coco import *

model.network.backbone.update(name='deit_base_patch16_224')
optim_wrapper.optimizer.update(weight_decay=1e-3)
optim_wrapper.groups.update(decay=0.75)
