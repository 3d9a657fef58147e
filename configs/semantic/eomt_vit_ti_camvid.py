"""EoMT on a fine-tuned ViT-Ti/16, CamVid.

    python tools/train.py configs/semantic/eomt_vit_ti_camvid.py

No published number. 50 queries in the last three blocks, losses at 3136 points, AdamW 3e-4 with layer decay 0.8 from
the last block on, 1300 steps of 8 crops.

Cost: about an hour and a half on 2 CPU cores.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.camvid import *
    from .._base_.eomt import *
    from .._base_.runtime import *

from vitdense.tasks.mask_matching import MaskMatcher
from vitdense.train.hooks.mask_annealing import MaskAnnealingHook

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k', patch_size=None, img_size=320)
model.network.update(num_queries=50, num_blocks=3)
model.tasks.sem.losses.update(matcher=dict(type=MaskMatcher, num_points=3136), num_points=3136)
model.tiler = None
optim_wrapper.optimizer.update(lr=3e-4)
optim_wrapper.groups.update(no_decay=('norm', 'bias', 'pos_embed', 'cls_token'))
optim_wrapper.clip_grad.update(max_norm=0.1)
schedule = dict(max_iters=1300, val_interval=650, warmup_iters=50, backbone_warmup_iters=100, decay='poly', power=0.9)
custom_hooks = [dict(type=MaskAnnealingHook)]
checkpoint.update(interval=650)
