"""Fine-tuning of ViT-Ti/16, Imagenette: MAE's recipe made small.

    python tools/train.py configs/classification/finetuned_vit_ti_imagenette.py

Aims at 0.97 top-1 of 10 classes on 300 validation images, with 600 to train on, in about 10 minutes on 2 CPU cores.
There is no published number. Layer decay 0.75, drop path 0.1, mixup 0.8, cutmix 1.0, label smoothing 0.1, averaged
weights. Without network, put a local file in place of the hub's:
--cfg-options model.network.backbone.pretrained=WEIGHTS.safetensors data_root=IMAGENETTE
"""

from mmengine.config import read_base

with read_base():
    from .._base_.class_finetuned import *
    from .._base_.datasets.imagenette import *
    from .._base_.runtime import *

model.network.backbone.update(name='vit_tiny_patch16_224.augreg_in21k_ft_in1k')
model.network.branches.cls.adapter.update(normed=True)
model.network.branches.cls.head.update(pool='token', norm='none')
optim_wrapper.optimizer.update(lr=5e-4)
optim_wrapper.groups.update(decay=0.75)
optim_wrapper.accumulative_counts = 1
schedule = dict(max_epochs=6, val_interval=3, warmup_iters=20, decay='cosine')
checkpoint.update(interval=3, best='cls/top1')
ema = dict(momentum=0.01)
