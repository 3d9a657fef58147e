"""Two-stage Deformable-DETR on a ViT-Adapter around a DINOv2 ViT-S run with patches of 16, COCO.

    python tools/train.py configs/detection/deformable_vitadapter_dinov2_s_coco.py

No published number for this pair: ViT-Adapter's own is 51.5 AP with Mask R-CNN (three times the schedule). Recipe
(detection/configs/mask_rcnn of it) for what is shared: windows of 14 x 14 cells but for four global blocks, no class
token, LayerScale that begins at 1 where the weights have none, the ViT's last map added to every level, drop path 0.2;
AdamW 1e-4, weight decay 0.05, layer decay 0.7, 500 steps of warm-up, 36 epochs of 16 images with DETR's sizes and
crops, a tenth of the rate after 27 and 33. The detector is Deformable-DETR's on strides 8, 16, 32 and one coarser,
gradients clipped at 0.1.

Differs from the source in: images are not cut to 1024 x 1024.

Cost: about two days on eight 40 GB GPUs (`torchrun --nproc_per_node 8`: two images each; estimated).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco import *
    from .._base_.deformable_vit_adapter import *
    from .._base_.runtime import *
    from .._base_.schedules.step_36ep import *

model.network.backbone.vit.update(name='vit_small_patch14_dinov2.lvd142m', patch_size=16)
optim_wrapper.groups.update(decay=0.7, no_decay=('norm', 'bias', 'layer_scale', 'gamma'))
checkpoint.update(interval=1, best='det/AP')
