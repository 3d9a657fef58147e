"""UPerNet with its auxiliary head on a ViT-Adapter around a fine-tuned ViT, the published segmentation variant."""

from torch.optim import AdamW

from vitdense.adapters.plain import BackboneMaps
from vitdense.adapters.vit_adapter import ViTAdapter
from vitdense.backbones.vit import ViT
from vitdense.heads.upernet import UPerNetHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask
from vitdense.test_time.sliding_window import Tiler
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(
            type=ViTAdapter,
            vit=dict(
                type=ViT,
                name='deit_small_patch16_224.fb_in1k',
                pretrained=True,
                drop_path=0.2,
                # LayerScale that begins at 1, which no pretrained file has (mmseg_custom/.../base/vit.py)
                partial_weights=('ls1', 'ls2'),
                timm_args=dict(class_token=False, init_values=1.0),
            ),
            num_heads=6,
            deform_ratio=1.0,
            drop_path=0.2,
        ),
        branches=dict(
            sem=dict(
                adapter=dict(type=BackboneMaps),
                head=dict(type=UPerNetHead, channels=512, pool_scales=(1, 2, 3, 6), aux_channels=256, aux_index=2),
            )
        ),
    ),
    tasks=dict(sem=dict(type=SemanticTask, aux_weight=0.4)),
    tiler=dict(type=Tiler, size=512, stride=341),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    groups=dict(type=LayerDecay, decay=0.95, no_decay=('norm', 'bias', 'layer_scale', 'gamma')),
    clip_grad=None,
    accumulative_counts=1,
)
