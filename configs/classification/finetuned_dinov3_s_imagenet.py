"""Fine-tuning of DINOv3 ViT-S/16, ImageNet-1k.

    python tools/train.py configs/classification/finetuned_dinov3_s_imagenet.py

No published number: DINOv3 reports this backbone frozen. The recipe is that of the
DINOv2 config at 256 pixels, the size that the checkpoint names.

Cost: about 65 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_finetuned import *
    from .._base_.datasets.imagenet import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_small_patch16_dinov3.lvd1689m')
model.network.branches.cls.adapter.update(normed=True)
model.network.branches.cls.head.update(pool='both', norm='none')
optim_wrapper.optimizer.update(lr=5e-4)
train_dataloader.dataset.transforms.crop.update(size=256)
val_dataloader.dataset.transforms.crop.update(size=256, crop_pct=1.0)
schedule = dict(max_epochs=50, val_interval=5, warmup_iters=50_045, warmup_ratio=0.0, decay='cosine', min_ratio=2e-3)
checkpoint.update(interval=1, best='cls/top1')
ema = dict(momentum=1e-4)
