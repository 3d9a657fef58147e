"""Linear segmentation on a frozen DINOv3 ViT-S/16, ADE20K.

    python tools/train.py configs/semantic/linear_dinov3_s_ade20k.py

Aims at 47.0 mIoU, single scale (DINOv3 model card). Recipe: the last layer with the final norm, dropout 0.1, batch
norm, a 1x1 convolution initialised from N(0, 0.01); AdamW 1e-3 with weight decay 1e-3, 1500 steps of warm-up, cosine to
zero, 40 000 steps of 16 crops, float32, cross-entropy averaged over all pixels, hue turned by up to half the circle,
images antialiased, windows of 512 every 341 pixels at test time (facebookresearch/dinov3,
dinov3/eval/segmentation/configs/config-ade20k-linear-training.yaml, transforms.py, loss.py).

Differs from the source in: saturation is multiplied in HSV, where theirs blends with gray (adjust_saturation).

Cost: about 3 hours on one 24 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k import *
    from .._base_.linear_frozen import *
    from .._base_.runtime import *

from vitdense.tasks.losses import CrossEntropy

model.network.backbone.name = 'vit_small_patch16_dinov3.lvd1689m'
model.network.branches.sem.head.update(dropout=0.1)
model.tasks.sem.update(losses=[dict(type=CrossEntropy, average='all')])
train_dataloader.dataset.transforms.resize.update(antialias=True)
train_dataloader.dataset.transforms.color.update(
    hue=90
)  # of 180: hue_range of transforms.py is (-0.5, 0.5) of the circle
val_dataloader.dataset.transforms.resize.update(antialias=True)
optim_wrapper.optimizer.weight_decay = 1e-3
schedule = dict(max_iters=40_000, val_interval=5_000, warmup_iters=1500, warmup_ratio=1e-6, decay='cosine')
checkpoint.update(interval=5_000)
amp = 'off'
