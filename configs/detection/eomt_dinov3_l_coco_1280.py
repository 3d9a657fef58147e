"""EoMT for instances on DINOv3 ViT-L, COCO at 1280.

    python tools/train.py configs/detection/eomt_dinov3_l_coco_1280.py

Aims at 49.9 mask AP (tue-mps/eomt, model zoo, DINOv3). The recipe is that of the config for 640.

Cost: about 2 days on eight 80 GB GPUs (`torchrun --nproc_per_node 8`: two images each).
"""

from mmengine.config import read_base

with read_base():
    from .eomt_dinov3_l_coco_640 import *

model.network.backbone.update(img_size=1280)
train_dataloader.dataset.transforms.jitter.update(size=1280)
val_dataloader.dataset.transforms.resize.update(size=1280, max_size=1280)
val_dataloader.dataset.transforms.pad.update(size=1280)
