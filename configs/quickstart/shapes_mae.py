"""Masked autoencoding of synthetic shapes: pretrain the small ViT of quickstart/shapes_segmentation.py without one
label.

    python tools/train.py configs/quickstart/shapes_mae.py --work-dir work_dirs/shapes_mae
    python tools/train.py configs/quickstart/shapes_segmentation.py \\
        --cfg-options model.network.backbone.pretrained=work_dirs/shapes_mae/encoder.safetensors

No published number: the scenes are synthetic. configs/pretraining/README.md has what is gained where
labels are few.
"""

from mmengine.config import read_base
from torch.optim import AdamW

with read_base():
    from .._base_.datasets.shapes import *
    from .._base_.runtime import *

from vitdense.backbones.vit import ViT
from vitdense.metrics.reconstruction import ReconstructionError
from vitdense.model import DenseModel
from vitdense.networks.mae import MaskedAutoencoder
from vitdense.tasks.reconstruction import ReconstructionTask
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=MaskedAutoencoder,
        backbone=dict(
            type=ViT,
            name='vit_tiny_patch16_224',
            patch_size=8,
            img_size=64,
            timm_args=dict(embed_dim=128, depth=3, num_heads=4),
        ),
        mask_ratio=0.75,
        norm_pix=False,  # these images are flat colours with noise: normalised, most of a patch would be noise
        decoder_channels=64,
        decoder_depth=1,
        decoder_heads=4,
    ),
    tasks=dict(mae=dict(type=ReconstructionTask)),
)
train_dataloader.update(batch_size=64)
val_evaluator = [dict(type=ReconstructionError, head='mae')]
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
    groups=dict(type=LayerDecay),
    clip_grad=None,
)
schedule = dict(max_iters=1500, val_interval=500, warmup_iters=100, decay='cosine')
checkpoint.update(interval=500, best='mae/error', rule='less')
