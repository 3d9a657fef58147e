"""Training of a trained model of instance masks on other data: `train.py --model MODEL --data FOLDER`, which brings
the model.

Sizes are those of images of 640 pixels; they are scaled to the size at which the model is evaluated. AdamW 1e-4 with
layer decay 0.8, gradients clipped at 0.01 (EoMT's), 2000 steps of 4 images.
"""

from mmengine.config import read_base

with read_base():
    from ..datasets.coco_masks import *

from torch.optim import AdamW

from vitdense.train.optim import LayerDecay

train_dataloader.update(batch_size=4, num_workers=2)
train_dataloader.dataset.transforms.jitter.update(ratio=(0.5, 2.0))
val_dataloader.update(num_workers=2)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.8),
    clip_grad=dict(max_norm=0.01),
    accumulative_counts=1,
)
schedule = dict(max_iters=2000, val_interval=500, warmup_iters=50, decay='cosine')
checkpoint = dict(interval=500, keep=2, best='det/segm/AP', rule='greater')
