"""A head that cannot overfit four images is broken. Real images, real weights, minutes: `pytest -m slow`."""

from pathlib import Path

import pytest
import torch

from vitdense.adapters.plain import PlainMaps
from vitdense.adapters.pyramid import LayerPyramid
from vitdense.backbones.vit import ViT
from vitdense.data.collate import collate
from vitdense.data.segmentation import SegmentationDataset
from vitdense.device import choose_precision
from vitdense.heads.linear import LinearHead
from vitdense.heads.upernet import UPerNetHead
from vitdense.metrics.miou import MeanIoU
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.tasks.semantic import SemanticTask
from vitdense.train.optim import LayerDecay, build_optimizer

LINEAR = dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead, norm='layer'))
UPERNET = dict(
    adapter=dict(type=LayerPyramid, layers=(2, 5, 8, 11)),
    head=dict(type=UPerNetHead, channels=64, aux_channels=64, dropout=0.0),
)


def miou(model: DenseModel, batch, classes: list[str]) -> float:
    metric = MeanIoU(head='sem', classes=classes)
    model.eval()
    with torch.inference_mode():
        metric.process(batch, model.val_step(batch))
    return metric.evaluate(len(batch.imgs))['sem/mIoU']


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ('branch', 'steps', 'lr', 'decay', 'head_lr', 'wanted'),
    [(LINEAR, 150, 3e-4, 0.9, 15, 0.78), (UPERNET, 300, 1e-3, 1.0, 3, 0.90)],
)
def test_four_camvid_images_are_overfitted(
    shared: Path, branch: dict, steps: int, lr: float, decay: float, head_lr: float, wanted: float
) -> None:
    root = shared / 'camvid'
    data = SegmentationDataset(
        'images/training', 'annotations/training', root=root, classes='classes.txt', ignore=11, evaluation=True
    )
    batch = collate([data[index] for index in range(0, 360, 90)])
    vit = ViT('vit_tiny_patch16_224', pretrained=shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors')
    classes = data.metainfo['classes']
    network = SharedNetwork(vit, {'sem': branch}, num_classes={'sem': len(classes['semantic'])})
    model = DenseModel(network, {'sem': SemanticTask()}, classes=classes)
    model.amp = choose_precision('auto', torch.device('cpu')).dtype
    groups = LayerDecay(decay=decay, head_lr=head_lr).groups(model)  # a head from scratch on a pretrained ViT
    optimizer = build_optimizer(dict(type=torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0), groups)
    warm = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group['lr'] for group in optimizer.param_groups], total_steps=steps, pct_start=0.2
    )
    model.train()
    for _ in range(steps):
        losses, _ = model.parse_losses(model(*model.data_preprocessor(batch, True), mode='loss'))
        optimizer.zero_grad()
        losses.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm.step()
    reached = miou(model, batch, classes['semantic'])
    print(f'mIoU on the four training images: {reached:.3f}')
    assert reached >= wanted
