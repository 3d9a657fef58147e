"""Linear segmentation on the last layer of a ViT-Ti/16 fine-tuned by LoRA, CamVid.

    python tools/train.py configs/semantic/linear_lora_vit_ti_camvid.py

Aims at the mIoU of `linear_finetuned_vit_ti_camvid.py` less 0.02 in as many steps, with 2 % of the backbone's
parameters trained. No published number. Checkpoints hold what was trained (0.5 MB); the folder model/ holds all of it,
merged.
"""

from mmengine.config import read_base

with read_base():
    from .linear_vit_ti_camvid import *

from vitdense.layers.lora import Lora

model.network.backbone.update(frozen=False, drop_path=0.1, lora=dict(type=Lora, rank=8, targets=('attn',)))
optim_wrapper.optimizer.update(lr=3e-3, weight_decay=1e-4)
optim_wrapper.groups.update(decay=1.0, head_lr=1.5, no_decay=('norm', 'bias', 'layer_scale', 'pos_embed', 'cls_token'))
schedule.update(warmup_iters=100)
