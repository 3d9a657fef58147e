"""LW-DETR small: ten blocks of width 192; images of 640 x 640, COCO.

    python tools/train.py configs/detection/lw_detr_small_coco.py

No published number from random weights: the published model reaches 48.0 AP after 30 epochs of Objects365 and these 60;
expect less. Its weights come in by `tools/import_weights.py lw-detr`, and `--weights` begins with them. Recipe: see
`_base_/lw_detr.py`; 13 groups of queries in training, AdamW 1e-4, ViT 1.5e-4, layer decay 0.8, batches of 32.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.lw_detr import *
