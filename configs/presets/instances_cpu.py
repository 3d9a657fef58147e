"""Preset of `vitdense finetune --task inst`: instance masks on a CPU, or on a GPU of less than 10 GiB.

    python tools/train.py configs/presets/instances_cpu.py --data FOLDER

EoMT on a fine-tuned ViT-Ti/16 at 320 pixels: 50 queries in the last three blocks, large-scale jitter, copy-paste.
Batches of 8. No worker loads data, so that training has all cores.

No published number.

Cost: not measured.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.runtime import *
    from .._base_.small_instances import *

from vitdense.tasks.mask_matching import MaskMatcher

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k', patch_size=None, img_size=320)
model.network.update(num_queries=50, num_blocks=3)
model.tasks.det.losses.update(matcher=dict(type=MaskMatcher, num_points=3136), num_points=3136)
train_dataloader.update(num_workers=0)
train_dataloader.dataset.transforms.jitter.update(size=320)
val_dataloader.update(num_workers=0)
val_dataloader.dataset.transforms.resize.update(size=320, max_size=320)
val_dataloader.dataset.transforms.pad.update(size=320)
optim_wrapper.optimizer.update(lr=3e-4)
optim_wrapper.groups.update(no_decay=('norm', 'bias', 'pos_embed', 'cls_token'))
optim_wrapper.clip_grad.update(max_norm=0.1)
schedule = dict(max_iters=1300, val_interval=650, warmup_iters=50, backbone_warmup_iters=100, decay='poly', power=0.9)
checkpoint.update(interval=650, best='det/segm/AP')
