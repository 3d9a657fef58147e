"""UPerNet with its auxiliary head on four layers of a fine-tuned ViT."""

from torch.optim import AdamW

from vitdense.adapters.pyramid import LayerPyramid
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
        backbone=dict(type=ViT, name='vit_base_patch16_224.mae', pretrained=True, drop_path=0.1),
        branches=dict(
            sem=dict(
                adapter=dict(type=LayerPyramid, layers=(3, 5, 7, 11), normed=False),
                head=dict(type=UPerNetHead, channels=512, pool_scales=(1, 2, 3, 6), aux_channels=256, aux_index=2),
            )
        ),
    ),
    tasks=dict(sem=dict(type=SemanticTask, aux_weight=0.4)),
    tiler=dict(type=Tiler, size=512, stride=341),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.65),
    clip_grad=None,
    accumulative_counts=1,
)
