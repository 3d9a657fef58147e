"""EoMT for semantic segmentation: 100 queries in the last four blocks of a fine-tuned DINOv2 ViT-L run at patch 16.

The masks of these blocks need `custom_hooks = [dict(type=MaskAnnealingHook)]` in the config.
"""

from torch.optim import AdamW

from vitdense.backbones.vit import ViT
from vitdense.model import DenseModel
from vitdense.networks.eomt import EoMT
from vitdense.tasks.mask_classification import MaskSemanticTask
from vitdense.tasks.mask_losses import MaskLoss
from vitdense.test_time.sliding_window import Tiler
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=EoMT,
        backbone=dict(
            type=ViT,
            name='vit_large_patch14_reg4_dinov2.lvd142m',
            pretrained=True,
            patch_size=16,
            img_size=512,
        ),
        num_queries=100,
        num_blocks=4,
        name='sem',
    ),
    tasks=dict(sem=dict(type=MaskSemanticTask, losses=dict(type=MaskLoss))),
    tiler=dict(type=Tiler, size=512, stride=512, even=True),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.8, full_blocks=1, no_decay=()),
    clip_grad=dict(max_norm=0.01),
    accumulative_counts=1,
)
