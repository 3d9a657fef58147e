"""EoMT for instance masks of one's own data: COCO's pipeline at another size, objects without a mask left out,
copy-paste, masks in the attention that are annealed.
"""

from mmengine.config import read_base

with read_base():
    from .datasets.coco_masks import *
    from .eomt import *

from vitdense.data.transforms.multi_image import CopyPaste
from vitdense.tasks.mask_classification import InstanceTask
from vitdense.tasks.mask_losses import MaskLoss
from vitdense.train.hooks.mask_annealing import MaskAnnealingHook

model.network.update(name='det')
model.tasks = dict(det=dict(type=InstanceTask, losses=dict(type=MaskLoss)))
model.tiler = None
train_dataloader.update(batch_size=8)
train_dataloader.dataset.update(skip_unmasked=True)
train_dataloader.dataset.transforms.jitter.update(ratio=(0.5, 2.0))
train_dataloader.dataset.transforms.update(paste=dict(type=CopyPaste, epochs=60))
val_dataloader.dataset.update(skip_unmasked=True)
custom_hooks = [dict(type=MaskAnnealingHook)]
