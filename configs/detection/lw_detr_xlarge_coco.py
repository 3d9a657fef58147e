"""LW-DETR xlarge: ten blocks of width 768, maps of strides 8 and 32; images of 640 x 640, COCO.

    python tools/train.py configs/detection/lw_detr_xlarge_coco.py

No published number from random weights: the published model reaches 58.3 AP after 30 epochs of Objects365 and these 60;
expect less. Its weights come in by `tools/import_weights.py lw-detr`, and `--weights` begins with them. Recipe: see
`_base_/lw_detr.py`; 13 groups of queries in training, AdamW 1e-4, ViT 1.5e-4, layer decay 0.75, 0.5 from component to
component, drop path 0.1, weight decay 1e-3, batches of 16.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.lw_detr import *

model.network.backbone.update(name='deit_base_patch16_224', drop_path=0.1)
model.network.branches.det.adapter.update(channels=384, scales=(2.0, 0.5))
model.network.branches.det.head.update(channels=384, num_levels=2, num_heads=12, cross_heads=24, num_points=4)
optim_wrapper.optimizer.update(weight_decay=1e-3)
optim_wrapper.groups.update(
    decay=0.75, backbone_lr=0.375, lr_of={'layers': 0.5, 'position_encoder': 0.5, 'decoder.norm': 0.5}
)
train_dataloader.update(batch_size=4)
