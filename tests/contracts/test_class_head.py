"""The classification head on every adapter: padding without effect, gradients, and export."""

import pytest
import torch
from torch import nn

from vitdense.adapters.plain import PlainMaps
from vitdense.adapters.pyramid import LayerPyramid, SimplePyramid
from vitdense.backbones.vit import ViT
from vitdense.heads.classify import ClassHead
from vitdense.networks.shared import SharedNetwork

SMALL = dict(depth=2, embed_dim=64, num_heads=4)
ADAPTERS = {
    'plain': dict(type=PlainMaps),
    'two-layers': dict(type=PlainMaps, layers=(0, -1)),
    'concat': dict(type=PlainMaps, layers=(0, 1), concat=True),
    'simple': dict(type=SimplePyramid, channels=12, extra_level=True),
    'layers': dict(type=LayerPyramid, layers=(0, 0, 1, 1)),
}


@pytest.fixture(scope='module', params=['vit_tiny_patch16_224', 'vit_small_patch16_dinov3'])
def vit(request) -> ViT:
    return ViT(request.param, timm_args=SMALL)


@pytest.mark.parametrize('pool', ['token', 'average', 'both', 'attention'])
@pytest.mark.parametrize('adapter', ADAPTERS)
def test_on_every_adapter_a_padded_batch_has_the_outputs_of_the_single_images(vit, adapter, pool):
    vit.requires_grad_(True).zero_grad(set_to_none=True)
    head = dict(type=ClassHead, pool=pool, norm='layer', num_heads=4, init_std=1.0)
    branch = dict(adapter=ADAPTERS[adapter], head=head)
    network = SharedNetwork(vit, {'cls': branch}, num_classes=dict(cls=5)).eval()
    cell = int(network.adapters['cls'].strides[-1])
    sizes = [(2 * cell, cell), (cell, 2 * cell), (2 * cell, 2 * cell)]
    imgs = torch.randn(3, 3, 2 * cell, 2 * cell)  # padding holds noise
    valid = torch.zeros(3, 2 * cell, 2 * cell, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes):
        valid[row, :height, :width] = True
    logits = network(imgs, valid)['cls'].logits
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in network.heads.parameters())
    for row, (height, width) in enumerate(sizes):
        alone = network(imgs[row : row + 1, :, :height, :width])['cls'].logits
        torch.testing.assert_close(logits[row], alone[0], atol=1e-3, rtol=1e-3)


class Logits(nn.Module):
    def __init__(self, network: SharedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, imgs: torch.Tensor) -> torch.Tensor:
        return self.network(imgs)['cls'].logits


@pytest.mark.parametrize('pool', ['both', 'attention'])
def test_an_exported_classifier_runs_on_other_batches_and_sizes(pool):
    branch = dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool=pool))
    vit = ViT('vit_tiny_patch16_224', timm_args=SMALL)
    model = Logits(SharedNetwork(vit, {'cls': branch}, num_classes=dict(cls=5))).eval()
    side = {axis: 16 * torch.export.Dim(name, min=2, max=20) for axis, name in ((2, 'rows'), (3, 'columns'))}
    free = {0: torch.export.Dim('batch', min=1, max=4), **side}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes={'imgs': free}).module()
    imgs = torch.randn(3, 3, 112, 48)
    torch.testing.assert_close(program(imgs), model(imgs), atol=1e-5, rtol=1e-4)
