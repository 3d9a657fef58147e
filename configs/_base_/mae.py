"""Masked autoencoding of ImageNet-1k images: the recipe of MAE (He et al. 2022, arXiv 2111.06377, appendix A), labels
unused.

`data/imagenet` holds images below train/ and val/, in folders of any kind. Training images are random crops of 224
pixels, mirrored, and nothing else (paper, table 1e); validation images are squeezed to 224 x 224.
"""

from torch.optim import AdamW
from torchvision.transforms.v2 import RandomResizedCrop

from vitdense.backbones.vit import ViT
from vitdense.data.transforms.common import RandomFlip, ResizeTo
from vitdense.data.unlabelled import ImageDataset
from vitdense.metrics.reconstruction import ReconstructionError
from vitdense.model import DenseModel
from vitdense.networks.mae import MaskedAutoencoder
from vitdense.tasks.reconstruction import ReconstructionTask
from vitdense.train.optim import LayerDecay

data_root = 'data/imagenet'

model = dict(
    type=DenseModel,
    network=dict(
        type=MaskedAutoencoder,
        backbone=dict(type=ViT, name='vit_base_patch16_224.mae', pretrained=False),
        mask_ratio=0.75,
        norm_pix=True,
        decoder_channels=512,
        decoder_depth=8,
        decoder_heads=16,
    ),
    tasks=dict(mae=dict(type=ReconstructionTask)),
)
train_dataloader = dict(
    batch_size=4096,
    num_workers=12,
    dataset=dict(
        type=ImageDataset,
        folder='train',
        transforms=dict(
            crop=dict(type=RandomResizedCrop, size=224, scale=(0.2, 1.0), interpolation=3),  # 3: bicubic
            flip=dict(type=RandomFlip),
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type=ImageDataset, folder='val', transforms=dict(resize=dict(type=ResizeTo, size=224))),
)
val_evaluator = [dict(type=ReconstructionError, head='mae')]
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05),  # 1.5e-4 for 256 images
    groups=dict(type=LayerDecay, no_decay=('norm', 'bias')),
    clip_grad=None,
    accumulative_counts=1,
)
# 313 steps of 4096 images make an epoch
schedule = dict(max_epochs=800, val_interval=20, warmup_iters=40 * 313, warmup_ratio=0.0, decay='cosine')
