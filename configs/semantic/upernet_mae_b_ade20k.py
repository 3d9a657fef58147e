"""UPerNet on a fine-tuned MAE ViT-B/16, ADE20K.

    python tools/train.py configs/semantic/upernet_mae_b_ade20k.py

Aims at 48.13 mIoU, single scale (mmsegmentation, configs/mae). Recipe: layers 3, 5, 7, 11 turned into strides 4 ...
32, UPerNet of 768 channels, auxiliary head of 256 on the third map with weight 0.4; AdamW 1e-4, weight decay 0.05 but
none for norms, biases and LayerScale, layer decay 0.65, drop path 0.1, 1500 steps of warm-up, linear decay, 160 000
steps of 16 crops, windows of 512 every 256 pixels. Every block learns a relative position bias, zero at the start;
cross-entropy is averaged over all pixels (mmsegmentation,
configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py, mmseg/engine/optimizers).

Cost: about 24 hours on one 80 GB GPU.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.ade20k import *
    from .._base_.runtime import *
    from .._base_.schedules.poly_160k import *
    from .._base_.upernet import *

from vitdense.tasks.losses import CrossEntropy

model.network.backbone.update(
    img_size=512, relative_bias=True, timm_args=dict(init_values=1.0), partial_weights=('ls1', 'ls2')
)
model.network.branches.sem.head.update(channels=768)
model.tasks.sem.update(losses=[dict(type=CrossEntropy, average='all')])
model.tiler.update(stride=256)
optim_wrapper.groups.update(no_decay=('norm', 'bias', 'layer_scale'))  # positions decay: see the optimizer's source
checkpoint.update(interval=4_000)
