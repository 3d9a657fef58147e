"""Fine-tuning of a whole ViT for classification: the recipe of MAE (He et al. 2022, arXiv 2111.06377, appendix A) on
the average of its tokens."""

from torch.optim import AdamW

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.classify import ClassHead
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.ops.mixing import ImageMixing
from vitdense.tasks.classification import ClassificationTask
from vitdense.train.optim import LayerDecay

model = dict(
    type=DenseModel,
    network=dict(
        type=SharedNetwork,
        backbone=dict(type=ViT, name='vit_base_patch16_224.mae', pretrained=True, drop_path=0.1),
        branches=dict(
            cls=dict(
                adapter=dict(type=PlainMaps, normed=False),
                head=dict(type=ClassHead, pool='average', norm='layer', init_std=2e-5),
            )
        ),
    ),
    tasks=dict(cls=dict(type=ClassificationTask, label_smoothing=0.1)),
    augment=dict(type=ImageMixing, mixup=0.8, cutmix=1.0, erase=0.25),
)
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    groups=dict(type=LayerDecay, decay=0.65),
    clip_grad=None,
    accumulative_counts=8,
)
