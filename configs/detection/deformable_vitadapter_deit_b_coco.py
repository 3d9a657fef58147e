"""Two-stage Deformable-DETR on a ViT-Adapter around a DeiT ViT-B/16, COCO.

    python tools/train.py configs/detection/deformable_vitadapter_deit_b_coco.py

No published number for this pair: ViT-Adapter's own is 49.6 AP with Mask R-CNN (three times the schedule). Recipe
(detection/configs/mask_rcnn of it) for what is shared: windows of 14 x 14 cells but for four global blocks, no class
token, LayerScale that begins at 1 where the weights have none, the ViT's last map added to every level, drop path 0.3;
AdamW 1e-4, weight decay 0.05, no layer decay, no weight decay for norms, biases, levels and positions, 500 steps of
warm-up, 36 epochs of 16 images with DETR's sizes and crops, a tenth of the rate after 27 and 33. The detector is
Deformable-DETR's on strides 8, 16, 32 and one coarser, gradients clipped at 0.1.

Differs from the source in: images are not cut to 1024 x 1024.

Cost: about three days on eight 40 GB GPUs (`torchrun --nproc_per_node 8`: two images each; estimated).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco import *
    from .._base_.deformable_vit_adapter import *
    from .._base_.runtime import *
    from .._base_.schedules.step_36ep import *

model.network.backbone.vit.update(name='deit_base_patch16_224.fb_in1k', drop_path=0.3)
model.network.backbone.update(num_heads=12, deform_ratio=0.5, drop_path=0.3)
checkpoint.update(interval=1, best='det/AP')
