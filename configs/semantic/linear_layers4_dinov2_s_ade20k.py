"""Linear segmentation on four layers of a frozen DINOv2 ViT-S/14 ("+ms"), ADE20K.

    python tools/train.py configs/semantic/linear_layers4_dinov2_s_ade20k.py
    python tools/test.py configs/semantic/linear_layers4_dinov2_s_ade20k.py work_dirs/.../best.pth --tta

Aims at 47.2 mIoU with --tta (DINOv2 paper, arXiv 2304.07193, column "+ms"): the last four layers concatenated, 640
pixel crops, five scales and flips at test time.

Differs from the source in what the source does not publish: the config of "+ms" exists in third-party copies only. Two
of them resize by 1 ... 3 in training and slide by 320 pixels; this one keeps the range 0.5 ... 2 and the stride of two
thirds of a window that the published recipe of the single-scale head has. The test scales are those usually quoted.

Cost: about 5 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .linear_dinov2_s_ade20k import *

from vitdense.test_time.tta import TestTimeAugmentation

model.network.branches.sem.adapter.update(layers=(-4, -3, -2, -1), concat=True)
model.tiler.update(size=640, stride=427)
model.tta = dict(type=TestTimeAugmentation, scales=(1.0, 1.32, 1.73, 2.28, 3.0), flip=True)
train_dataloader.dataset.transforms.resize.update(scale=(2560, 640))
train_dataloader.dataset.transforms.crop.update(size=(640, 640))
train_dataloader.dataset.transforms.pad.update(size=640)
val_dataloader.dataset.transforms.resize.update(size=640, max_size=2560)
