"""Preset of `vitdense finetune --task inst`: instance masks on a GPU of 10 GiB or more.

    python tools/train.py configs/presets/instances_gpu.py --data FOLDER

EoMT on a DINOv2 ViT-S with registers run with patches of 16 at 640 pixels: 100 queries in the last four blocks,
large-scale jitter, copy-paste. Batches of 8.

No published number.

Cost: not measured.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.small_instances import *

model.network.backbone.update(name='vit_small_patch14_reg4_dinov2.lvd142m', img_size=640)
model.network.update(num_queries=100)
train_dataloader.update(num_workers=4)
val_dataloader.update(num_workers=2)
optim_wrapper.optimizer.update(lr=1e-4)
optim_wrapper.clip_grad.update(max_norm=0.01)
schedule = dict(max_iters=4000, val_interval=1000, warmup_iters=50, backbone_warmup_iters=200, decay='poly', power=0.9)
checkpoint.update(interval=1000, best='det/segm/AP')
