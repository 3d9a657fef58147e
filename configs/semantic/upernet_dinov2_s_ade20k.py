"""UPerNet on a fine-tuned DINOv2 ViT-S/14, run with patches of 16, ADE20K.

    python tools/train.py configs/semantic/upernet_dinov2_s_ade20k.py

No published number exists for this pair: the recipe is the UPerNet one of the MAE config with a head of 512 channels, a
layer decay of 0.75, half the schedule, and windows of 512 with a stride of 341 in the evaluation. The patch embedding
is resampled from 14 to 16 pixels, so crops of 512 need no padding.

Cost: about 8 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k import *
    from .._base_.runtime import *
    from .._base_.schedules.poly_160k import *
    from .._base_.upernet import *

from vitdense.tasks.losses import CrossEntropy

model.network.backbone.update(name='vit_small_patch14_dinov2.lvd142m', patch_size=16)
model.tasks.sem.update(losses=[dict(type=CrossEntropy, average='all')])
optim_wrapper.groups.decay = 0.75
schedule.update(max_iters=80_000, val_interval=8_000)
checkpoint.update(interval=4_000)
