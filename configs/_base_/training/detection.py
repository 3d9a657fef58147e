"""Training of a trained detector on other data: `train.py --model MODEL --data FOLDER`, which brings the model.

Sizes are those of images of 512 pixels; they are scaled to the size at which the model is evaluated. AdamW 1e-4, the
ViT at half of it with layer decay 0.8, gradients clipped at 0.1, 2000 steps of 4 images.
"""

from mmengine.config import read_base

with read_base():
    from ..datasets.coco_mini480 import *

from torch.optim import AdamW

from vitdense.data.transforms.common import ResizeTo
from vitdense.train.optim import LayerDecay

train_dataloader.update(batch_size=4, num_workers=2)
train_dataloader.dataset.transforms.resize.update(
    sizes=(384, 448, 512, 576), max_size=960, before=(400, 500, 600), crop=(384, 600)
)
val_dataloader.update(num_workers=2)
val_dataloader.dataset.transforms.resize = dict(type=ResizeTo, size=512)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    groups=dict(type=LayerDecay, decay=0.8, backbone_lr=0.5),
    clip_grad=dict(max_norm=0.1),
    accumulative_counts=1,
)
schedule = dict(max_iters=2000, val_interval=500, warmup_iters=50, decay='cosine')
checkpoint = dict(interval=500, keep=2, best='det/AP', rule='greater')
