"""DPT on four reassembled layers of a fine-tuned ViT."""

from torch.optim import AdamW

from vitdense.adapters.reassemble import Reassemble
from vitdense.backbones.vit import ViT
from vitdense.heads.dpt import DPTHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_base_patch16_224.orig_in21k_ft_in1k', pretrained=True),
        branches=dict(
            sem=dict(
                adapter=dict(
                    type=Reassemble, layers=(2, 5, 8, 11), channels=(96, 192, 384, 768), readout='project', normed=False
                ),
                head=dict(type=DPTHead, channels=256, dropout=0.1, aux=False),
            )
        ),
    ),
    tasks=dict(sem=dict(type=SemanticTask)),
    tiler=None,
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    groups=dict(type=LayerDecay, no_decay=('norm', 'pos_embed', 'cls_token')),
    clip_grad=None,
    accumulative_counts=1,
)
