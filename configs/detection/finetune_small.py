"""A few hundred images of your own: a small two-stage detector on a ViT-Ti/16 that is frozen at first.

    python tools/train.py configs/detection/finetune_small.py

For one GPU or a CPU. As it is, it trains on 336 images of COCO; for your own give the folder and two
annotation files:
--cfg-options data_root=FOLDER train_dataloader.dataset.annotations=TRAIN.json train_dataloader.dataset.images=TRAIN
val_dataloader.dataset.annotations=VAL.json val_dataloader.dataset.images=VAL
Without network, put a local file in place of the hub's: model.network.backbone.pretrained=WEIGHTS.safetensors
On a GPU a larger ViT and larger images are worth it: model.network.backbone.name=vit_small_patch16_dinov3.lvd1689m

No published number. Recipe: strides 8, 16 and 32 of four layers; two decoder layers and no encoder; 100 queries, each
with the feature of its cell, and 150 for denoising; every cell proposes all classes, and every object trains four
proposals; class loss with Deformable-DETR's weight, 2. AdamW 1e-3, ViT at a fifth of it with layer decay 0.8, gradients
clipped at 1.0, 2000 steps of 4 images made square with sides of 192 ... 256, the ViT frozen for the first 100.
Squares do not fill up batches with padding.
For a GPU and larger data: more steps, and sides of 448 ... 640.

Expect little of so few images and steps. AP on the 206 images for validation, 80 classes, seeds 0 ... 7:
0.0329 / 0.0298 / 0.0337 / 0.0376 / 0.0295 / 0.0245 / 0.0314 / 0.0321; with a frozen ViT throughout
(model.network.backbone.frozen=True custom_hooks=[]) 0.0314 / 0.0279 / 0.0205 / 0.0244 / 0.0225 / 0.0231 / 0.0259 /
0.0280. The means differ by 0.0060, seeds by 0.0038 and 0.0035 (standard deviations): every seed gains, but three seeds
do not show it; docs/results.md says more.

Cost: half an hour to an hour of one CPU core.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_mini480 import *
    from .._base_.runtime import *
    from .._base_.small_detector import *

from vitdense.data.transforms.common import ResizeTo
from vitdense.tasks.detection_losses import Focal
from vitdense.train.hooks.unfreezing import UnfreezeHook

model.network.branches.det.head.selection.update(content='selected', dense=True)
model.tasks.det.update(classification=dict(type=Focal, weight=2.0))
model.tasks.det.denoising.update(num_queries=150)
train_dataloader.update(batch_size=4)
train_dataloader.dataset.transforms.resize.update(sizes=(192, 224, 256), square=True)
val_dataloader.dataset.transforms.resize = dict(type=ResizeTo, size=256)
optim_wrapper.optimizer.update(lr=1e-3)
optim_wrapper.groups.update(backbone_lr=0.2)
optim_wrapper.clip_grad.update(max_norm=1.0)
schedule = dict(max_iters=2000, val_interval=1000, warmup_iters=50, decay='cosine')
custom_hooks = [dict(type=UnfreezeHook, steps=(100,))]
checkpoint.update(interval=500, best='det/AP')
