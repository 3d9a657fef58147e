"""UPerNet on a ViT-Adapter around a DeiT ViT-S/16, ADE20K.

    python tools/train.py configs/semantic/upernet_vitadapter_deit_s_ade20k.py

Aims at 46.2 mIoU, single scale (ViT-Adapter, segmentation/configs/ade20k). Recipe (the same folder): interactions
behind the four quarters of the ViT, global attention, no class token, 6 heads of deformable attention that read all
channels, UPerNet of 512 channels with an auxiliary head of 256; layer decay 0.95, AdamW 6e-5, weight decay 0.01, drop
path 0.2; 1500 steps of warm-up, linear decay, 160 000 steps of 16 crops, windows of 512 every 341 pixels.

As in the source, LayerScale begins at 1, cross-entropy is averaged over all pixels, crops are padded after
normalisation, and test images are resized to the next multiples of 32.

Differs from the source in: a test image is resized once, straight to the multiples.

Cost: about 28 hours on one 40 GB GPU (estimated).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k import *
    from .._base_.runtime import *
    from .._base_.schedules.poly_160k import *
    from .._base_.upernet_vit_adapter import *

from vitdense.tasks.losses import CrossEntropy

model.tasks.sem.update(losses=[dict(type=CrossEntropy, average='all')])
# the authors' ResizeToMultiple(size_divisor=32)
val_dataloader.dataset.transforms.resize.update(divisor=32, round_up=True)
checkpoint.update(interval=4_000)
