"""Linear segmentation on a fine-tuned DINOv2 ViT-B run with patches of 16, ADE20K.

    python tools/train.py configs/semantic/linear_finetuned_dinov2_b_ade20k_512_40k.py

Aims at 53.4 mIoU (tue-mps/benchmark-vfm-ss, issue 1; the same code reaches 45.8 with the encoder frozen). Recipe:
layer norm and a linear layer on the last layer without the encoder's final norm; AdamW 1e-4, encoder at a tenth of it
with no layer decay, weight decay 0.05 on every parameter, polynomial decay 0.9 with no warm-up, 40 400 steps of 16
crops; validation resizes the short side to 512 and averages evenly spaced windows of 512.

Cost: about 12 hours on one 40 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k import *
    from .._base_.linear_frozen import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_base_patch14_dinov2.lvd142m', patch_size=16, frozen=False)
model.network.branches.sem.adapter.update(normed=False)
model.network.branches.sem.head.update(norm='layer')
model.tiler.update(stride=512, even=True)
optim_wrapper.optimizer.update(lr=1e-4, weight_decay=0.05)
optim_wrapper.groups.update(backbone_lr=0.1)
train_dataloader.dataset.transforms[1].update(max_category_fraction=1.0)
schedule = dict(max_iters=40_400, val_interval=5_050, decay='poly', power=0.9)
checkpoint.update(interval=5_050)
