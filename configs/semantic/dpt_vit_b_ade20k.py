"""DPT on a fine-tuned ViT-B/16, ADE20K.

    python tools/train.py configs/semantic/dpt_vit_b_ade20k.py

Aims at 46.97 mIoU, single scale (mmsegmentation, configs/dpt). Recipe: layers 2, 5, 8 and 11 with the class token
projected into every patch, reassembled to 96, 192, 384 and 768 channels, fused at 256; no auxiliary head; AdamW 6e-5,
weight decay 0.01 (none for norms, positions and class token), 1500 steps of warm-up, linear decay, 160 000 steps of 16
crops, cross-entropy averaged over all pixels, dropout of whole channels, whole images in the evaluation.

Differs from the source in: images are normalised as the weights were trained.

Cost: about 24 hours on one 40 GB GPU (estimated).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k import *
    from .._base_.dpt import *
    from .._base_.runtime import *
    from .._base_.schedules.poly_160k import *

from vitdense.tasks.losses import CrossEntropy

model.tasks.sem.update(losses=[dict(type=CrossEntropy, average='all')])
checkpoint.update(interval=4_000)
