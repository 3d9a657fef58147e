"""LW-DETR tiny: six blocks of width 192, 100 queries; images of 640 x 640, COCO.

    python tools/train.py configs/detection/lw_detr_tiny_coco.py

No published number from random weights: the published model reaches 42.6 AP after 30 epochs of Objects365 and these 60;
expect less. Its weights come in by `tools/import_weights.py lw-detr`, and `--weights` begins with them. Recipe: see
`_base_/lw_detr.py`; 13 groups of queries in training, AdamW 1e-4, ViT 1.5e-4, layer decay 0.8, batches of 32.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.lw_detr import *

model.network.backbone.timm_args.update(depth=6)
model.network.backbone.windows.update(global_blocks=(1, 3, 5))
model.network.branches.det.adapter.update(layers=(1, 3, 5))
model.network.branches.det.head.update(num_queries=100)
model.tasks.det.update(top_k=100)
