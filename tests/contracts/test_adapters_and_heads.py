"""Every head on every adapter on small ViTs of three kinds: shapes, gradients, and padding without effect."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitdense.adapters.plain import BackboneMaps, PlainMaps
from vitdense.adapters.projector import Projector
from vitdense.adapters.pyramid import LayerPyramid, SimplePyramid
from vitdense.adapters.reassemble import Reassemble
from vitdense.adapters.spatial_tuning import SpatialTuning
from vitdense.adapters.vit_adapter import ReadingViTAdapter, ViTAdapter
from vitdense.backbones.vit import ViT
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.detr import DetrHead
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import QuerySelection
from vitdense.heads.dpt import DPTHead
from vitdense.heads.linear import LinearHead
from vitdense.heads.upernet import UPerNetHead
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.types import Outputs, PixelOutputs, QueryOutputs

SMALL = dict(depth=2, embed_dim=48, num_heads=3)
VITS = {
    'plain': dict(name='vit_tiny_patch16_224'),
    'registers': dict(name='vit_small_patch14_reg4_dinov2', img_size=112),
    'rope': dict(name='vit_small_patch16_dinov3'),
}
ADAPTERS = {
    'plain': dict(type=PlainMaps),
    'two-layers': dict(type=PlainMaps, layers=(0, -1)),
    'concat-raw': dict(type=PlainMaps, layers=(0, 1), normed=False, concat=True),
    'simple': dict(type=SimplePyramid, channels=12),
    'simple-p6': dict(type=SimplePyramid, channels=12, extra_level=True),
    'layers': dict(type=LayerPyramid, layers=(0, 0, 1, 1)),
    'layers-ln': dict(type=LayerPyramid, layers=(0, 0, 1, 1), norm='layer', normed=True),
    'projector': dict(type=Projector, layers=(0, 1), channels=12, scales=(2.0, 1.0, 0.5), num_blocks=1),
    'reassemble': dict(type=Reassemble, layers=(0, 0, 1, 1), channels=(8, 12, 16, 20)),
    'reassemble-add': dict(type=Reassemble, layers=(0, 0, 1, 1), channels=(8, 8, 8, 8), readout='add'),
    'tuning': dict(type=SpatialTuning, layers=(0, 1, 1), channels=12, detail_channels=4),
    'vit-adapter': dict(type=ViTAdapter, layers=(0, 1), prior_channels=4, add_features='last', gamma_init=0.5),
    'reading': dict(type=ReadingViTAdapter, layers=(0, 0, 1, 1), prior_channels=4, extra_extractors=0),
}
DETR = dict(channels=16, num_heads=2, ffn_dim=16, num_encoder_layers=1, num_decoder_layers=2, num_queries=5)
MIXED = QuerySelection(content='learned', class_agnostic=False)
ANCHORS = BoxDecoding(anchors=True, final_norm=True)
HEADS = {
    'linear': dict(type=LinearHead),
    'linear-ln': dict(type=LinearHead, norm='layer', dropout=0.1),
    'upernet': dict(type=UPerNetHead, channels=12, aux_channels=8),
    'detr': dict(type=DetrHead, **DETR),
    'deformable': dict(type=DeformableDetrHead, **DETR),
    'two-stage': dict(type=DeformableDetrHead, **DETR, selection=QuerySelection()),
    'dino': dict(
        type=DeformableDetrHead,
        **DETR,
        selection=MIXED,
        decoding=replace(ANCHORS, look_forward_twice=True),
        denoising=True,
    ),
    'real-time': dict(
        type=DeformableDetrHead,
        **DETR | dict(num_encoder_layers=0),
        selection=MIXED,
        decoding=replace(ANCHORS, refine=False),
        groups=2,
    ),
    'dpt': dict(type=DPTHead, channels=8),
}
ONE_VIT = {'detr', 'deformable', 'two-stage', 'dino', 'real-time'}  # many tests; what a ViT does, the other heads test
CASES = [
    (kind, adapter, head)
    for kind in VITS
    for adapter in ADAPTERS
    for head in HEADS
    if head not in ONE_VIT or kind == 'rope'
]
every_pair = pytest.mark.parametrize(
    ('vit', 'adapter', 'head'), CASES, ids=['/'.join(case) for case in CASES], indirect=['vit']
)


@pytest.fixture(scope='module')
def vit(request) -> ViT:
    return ViT(timm_args=SMALL, **VITS[request.param])


def network_of(vit: ViT, adapter: str, head: str) -> SharedNetwork:
    vit.requires_grad_(True).zero_grad(set_to_none=True)
    adapter = ADAPTERS[adapter]
    if adapter['type'] is ViTAdapter:  # it is the backbone
        vit, adapter = build(adapter, vit=vit), dict(type=BackboneMaps)
    branch = dict(adapter=adapter, head=HEADS[head])
    return SharedNetwork(vit, {'sem': branch}, num_classes=dict(sem=5))


def cell_of(network: SharedNetwork) -> int:
    """The pixels that both the coarsest stride and the patch divide."""
    return math.lcm(int(network.adapters['sem'].strides[-1]), network.divisor)


@every_pair
def test_shapes_and_strides(vit, adapter, head):
    network = network_of(vit, adapter, head).eval()
    strides = network.adapters['sem'].strides
    cell = cell_of(network)
    with torch.no_grad():
        outputs = network(torch.randn(2, 3, 2 * cell, 3 * cell))['sem']
    assert outputs.aux == ()
    if isinstance(outputs, QueryOutputs):
        assert outputs.class_logits.shape in ((2, 5, 5), (2, 5, 6)) and outputs.boxes.shape == (2, 5, 4)
        assert outputs.sizes.tolist() == [[2 * cell, 3 * cell]] * 2
        return
    assert outputs.input_size == (2 * cell, 3 * cell)
    stride = strides[-1] / 2 ** len(strides) if head == 'dpt' else strides[0]  # DPT doubles at every level
    assert tuple(outputs.logits.shape) == (2, 5, 2 * cell / stride, 3 * cell / stride)


def outputs_of(outputs: Outputs) -> list[torch.Tensor]:
    """Everything that a loss reads."""
    if isinstance(outputs, PixelOutputs):
        return [outputs.logits, *outputs.aux]
    stages = [outputs, *outputs.aux, *([] if outputs.proposals is None else [outputs.proposals])]
    return [output for stage in stages for output in (stage.class_logits, stage.boxes)]


@every_pair
def test_backward_reaches_every_parameter(vit, adapter, head):
    network = network_of(vit, adapter, head).train()
    cell = cell_of(network)
    outputs = network(torch.randn(2, 3, 2 * cell, 2 * cell))['sem']
    sum(output.square().mean() for output in outputs_of(outputs)).backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
    ]
    assert without == []


def shake(network: nn.Module) -> None:
    """Give every norm a bias and every layer a weight, so that padding does not stay zero by luck."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)


def parts_of(outputs: Outputs, row: int, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """What is said about image `row` of `size`: its pixels, or its queries."""
    if isinstance(outputs, PixelOutputs):
        planar_channels = functional.interpolate(outputs.logits, size=outputs.input_size, mode='bilinear')
        return (planar_channels[row, :, : size[0], : size[1]],)
    return outputs.class_logits[row], outputs.boxes[row], outputs.sizes[row]


@every_pair
def test_a_padded_batch_has_the_outputs_of_the_single_images(vit, adapter, head):
    network = network_of(vit, adapter, head).eval()
    shake(network)
    cell = cell_of(network)
    most = 3 * cell if cell < 100 else 2 * cell
    sizes = [(most, cell), (cell, most), (2 * cell, 2 * cell), (most, most)][: 4 if cell < 100 else 2]
    imgs = torch.randn(len(sizes), 3, most, most)  # padding holds noise: it must not be read
    valid = torch.zeros(len(sizes), most, most, dtype=torch.bool)
    for row, (height, width) in enumerate(sizes):
        valid[row, :height, :width] = True
    with torch.no_grad():
        batched = network(imgs, valid)['sem']
        for row, (height, width) in enumerate(sizes):
            single = network(imgs[row : row + 1, :, :height, :width])['sem']
            for part, alone in zip(parts_of(batched, row, sizes[row]), parts_of(single, 0, sizes[row]), strict=True):
                assert (part - alone).abs().max() / alone.abs().max() < 1e-3, f'image {row} of {sizes[row]}'


class Logits(nn.Module):
    def __init__(self, network: SharedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, imgs: torch.Tensor) -> torch.Tensor:
        return self.network(imgs)['sem'].logits


@pytest.mark.skipif(
    torch.__version__ < '2.11', reason='the exporter of torch 2.10 ties a strided pool to odd or even grids'
)
@pytest.mark.parametrize(('adapter', 'head'), [('layers', 'upernet'), ('reassemble', 'dpt'), ('tuning', 'upernet')])
def test_exported_pyramids_and_heads_run_on_other_batches_and_sizes(adapter, head):
    vit = ViT('vit_tiny_patch16_224', timm_args=SMALL)
    model = Logits(network_of(vit, adapter, head)).eval()
    side = {axis: 16 * torch.export.Dim(name, min=2, max=20) for axis, name in ((2, 'rows'), (3, 'columns'))}
    free = {0: torch.export.Dim('batch', min=1, max=4), **side}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes={'imgs': free}).module()
    imgs = torch.randn(3, 3, 112, 48)
    torch.testing.assert_close(program(imgs), model(imgs), atol=1e-5, rtol=1e-4)


def test_an_exported_vit_adapter_runs_on_other_batches():
    """Its deformable attention has constant grids when it is compiled: one program for each size."""
    vit = ViT('vit_tiny_patch16_224', timm_args=SMALL)
    model = Logits(network_of(vit, 'vit-adapter', 'linear')).eval()
    free = {0: torch.export.Dim('batch', min=1, max=4)}
    program = torch.export.export(model, (torch.randn(2, 3, 48, 64),), dynamic_shapes={'imgs': free}).module()
    imgs = torch.randn(3, 3, 48, 64)
    torch.testing.assert_close(program(imgs), model(imgs), atol=1e-5, rtol=1e-4)


def test_a_frozen_backbone_stays_in_evaluation_mode_and_without_graph():
    vit = ViT('vit_tiny_patch16_224', frozen=True, timm_args=SMALL)
    network = network_of_frozen(vit).train()
    assert network.heads.training and not any(module.training for module in network.backbone.modules())
    network(torch.randn(2, 3, 64, 64))['sem'].logits.sum().backward()
    assert all(parameter.grad is None for parameter in vit.parameters())


def network_of_frozen(vit: ViT) -> SharedNetwork:
    branch = dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead))
    return SharedNetwork(vit, {'sem': branch}, num_classes=dict(sem=5))
