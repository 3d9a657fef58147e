"""UPerNet on a ViT-Adapter around a fine-tuned ViT-Ti/16, CamVid.

    python tools/train.py configs/semantic/upernet_vitadapter_vit_ti_camvid.py

No published number. The budget is that of `linear_finetuned_vit_ti_camvid.py`, which it is compared with: 1000
steps of 8 crops of 320, the same optimizer, rates and schedule. The ViT keeps its class token, and its spatial prior is
a quarter as wide as the published one.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.camvid import *
    from .._base_.runtime import *
    from .._base_.upernet_vit_adapter import *

model.network.backbone.vit.update(
    name='vit_tiny_patch16_224.augreg_in21k_ft_in1k',
    drop_path=0.1,
    partial_weights=False,
    timm_args=dict(class_token=True),
)
model.network.backbone.update(drop_path=0.1, prior_channels=16, extra_extractors=0)
model.network.branches.sem.head.update(channels=64, aux_channels=64)
model.tiler = None
optim_wrapper.optimizer.update(lr=3e-4, weight_decay=0.05)
# head and adapter start from nothing, and the run is short
optim_wrapper.groups.update(decay=0.8, head_lr=15, lr_of=dict(pyramid=0.3, injectors=0.3))
schedule = dict(max_iters=1000, val_interval=500, warmup_iters=100, decay='cosine')
checkpoint.update(interval=500)
