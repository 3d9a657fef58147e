"""ViT-Adapter against a plain float64 computation of the paper's equations, and its modes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.adapters.plain import BackboneMaps, PlainMaps
from vitdense.adapters.vit_adapter import ReadingViTAdapter, ViTAdapter
from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError
from vitdense.heads.classify import ClassHead
from vitdense.heads.linear import LinearHead
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.train.optim import LayerDecay

SMALL = dict(depth=4, embed_dim=24, num_heads=2)
LEAN = dict(prior_channels=4, num_heads=3, num_points=2)


def tiny_vit(name: str = 'vit_tiny_patch16_224', timm_args: dict | None = None, **arguments) -> ViT:
    return ViT(name, timm_args=SMALL | (timm_args or {}), **arguments)


def shaken(module: nn.Module) -> nn.Module:
    """Give every parameter and every running statistic a random value, so that nothing is right by being zero."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith('running_var'):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and ('gamma' in name or tensor.ndim < 2):
                tensor.add_(0.3 * torch.randn_like(tensor))
            elif 'sampling_offsets' in name or 'attention_weights' in name:
                tensor.normal_(std=0.5)
    return module


# The paper's equations, each written once in the plainest way.


def conv_block(x: Tensor, weights: dict, name: str, stride: int) -> Tensor:
    x = functional.conv2d(x, weights[f'{name}.conv.weight'], stride=stride, padding=1)
    return batch_norm(x, weights, f'{name}.norm').relu()


def batch_norm(x: Tensor, weights: dict, name: str) -> Tensor:
    mean, var, gain, bias = (weights[f'{name}.{leaf}'] for leaf in ('running_mean', 'running_var', 'weight', 'bias'))
    return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * gain[:, None, None] + bias[:, None, None]


def layer_norm(x: Tensor, weights: dict, name: str) -> Tensor:
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return normed * weights[f'{name}.weight'] + weights[f'{name}.bias']


def linear(x: Tensor, weights: dict, name: str) -> Tensor:
    return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']


def spatial_prior(imgs: Tensor, weights: dict) -> list[Tensor]:
    """Section 3.3: the stem, three more stages, and one projection of each."""
    x = imgs
    for number, stride in enumerate((2, 1, 1)):
        x = conv_block(x, weights, f'prior.stem.{number}', stride)
    maps = [functional.max_pool2d(x, 3, 2, 1)]
    for number in range(3):
        maps.append(conv_block(maps[-1], weights, f'prior.stages.{number}', 2))
    return [
        functional.conv2d(x, weights[f'prior.project.{level}.weight'], weights[f'prior.project.{level}.bias'])
        for level, x in enumerate(maps)
    ]


def middles(grid: tuple[int, int], stride: int) -> Tensor:
    """(h * w, 2): x and y in pixels of the middle of each cell."""
    return torch.tensor([[(x + 0.5) * stride, (y + 0.5) * stride] for y in range(grid[0]) for x in range(grid[1])])


def read_map(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The value (C, n) of `values` (C, h, w) at places counted in cells; outside is zero."""
    total = 0
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < values.shape[2]) & (row >= 0) & (row < values.shape[1])
            there = values[:, row.clamp(0, values.shape[1] - 1).long(), column.clamp(0, values.shape[2] - 1).long()]
            total = total + there * (weight * inside)
    return total


def deformable(
    queries: Tensor, pixels: Tensor, maps: list[Tensor], strides: list[int], weights: dict, name: str, heads: int
) -> Tensor:
    """Equation 2 of Deformable DETR for one image: `queries` (n, C) at `pixels`, `maps` (C, h, w)."""
    shape = (len(queries), heads, len(maps), -1)
    offsets = linear(queries, weights, f'{name}.sampling_offsets').view(*shape, 2)
    shares = linear(queries, weights, f'{name}.attention_weights').view(*shape[:2], -1).softmax(-1).view(shape)
    read = 0
    for level, (values, stride) in enumerate(zip(maps, strides, strict=True)):
        value = linear(values.permute(1, 2, 0), weights, f'{name}.value_proj').permute(2, 0, 1)
        for point in range(shares.shape[3]):
            x, y = (pixels[:, None] / stride - 0.5 + offsets[:, :, level, point]).unbind(-1)  # (n, heads)
            recorded = [read_map(part, x[:, head], y[:, head]) for head, part in enumerate(value.chunk(heads))]
            read = read + torch.cat([part * shares[:, head, level, point] for head, part in enumerate(recorded)])
    return linear(read.T, weights, f'{name}.output_proj')


def norm_map(x: Tensor, weights: dict, name: str) -> Tensor:
    return layer_norm(x.permute(1, 2, 0), weights, name).permute(2, 0, 1)


def rows_of(x: Tensor) -> Tensor:
    return x.flatten(1).T  # (C, h, w) -> (h * w, C)


def extract(maps: list[Tensor], x: Tensor, patch: int, weights: dict, name: str, heads: int) -> list[Tensor]:
    """Equations 2 and 3: the spatial features read the ViT, then a ConvFFN mixes each level."""
    recorded, result = norm_map(x, weights, f'{name}.feat_norm'), []
    for level, stride in zip(maps, (8, 16, 32), strict=True):
        queries = layer_norm(rows_of(level), weights, f'{name}.query_norm')
        pixels = middles(level.shape[1:], stride)
        tokens = rows_of(level) + deformable(queries, pixels, [recorded], [patch], weights, f'{name}.attn', heads)
        ffn = linear(layer_norm(tokens, weights, f'{name}.ffn_norm'), weights, f'{name}.ffn.fc1')
        ffn = ffn.T.unflatten(1, level.shape[1:])
        kernel, bias = weights[f'{name}.ffn.dwconv.weight'], weights[f'{name}.ffn.dwconv.bias']
        ffn = functional.conv2d(ffn, kernel, bias, padding=1, groups=len(ffn))
        tokens = tokens + linear(functional.gelu(rows_of(ffn)), weights, f'{name}.ffn.fc2')
        result.append(tokens.T.unflatten(1, level.shape[1:]))
    return result


def vit_at(x: Tensor, stride: int, patch: int, size: tuple[int, int]) -> Tensor:
    """The ViT's map (C, h, w) where the cells of another stride have their middles, its edge repeated."""
    position_x, position_y = (middles(size, stride) / patch - 0.5).unbind(-1)
    position_x, position_y = position_x.clamp(0, x.shape[2] - 1), position_y.clamp(0, x.shape[1] - 1)
    return read_map(x, position_x, position_y).unflatten(1, size)


def reference(adapter: ViTAdapter, img: Tensor) -> list[Tensor]:
    """The whole ViT-Adapter for one image (3, H, W)."""
    vit, patch = adapter.vit, adapter.patch_size
    weights = {name.removeprefix('pyramid.'): value for name, value in adapter.state_dict().items()}
    heads = adapter.injectors[0].attn.num_heads
    c1, *maps = (x[0] for x in spatial_prior(img[None], weights))
    maps = [x + embed[:, None, None] for x, embed in zip(maps, weights['level_embed'], strict=True)]
    tokens = vit.embed(img[None])
    grid, lead = tokens.grid, tokens.x.shape[1] - tokens.grid[0] * tokens.grid[1]
    start, recorded = 0, []
    for number, stop in enumerate(adapter.stops):
        name, patches = f'injectors.{number}', tokens.x[0, lead:]
        values = [norm_map(x, weights, f'{name}.feat_norm') for x in maps]
        queries = layer_norm(patches, weights, f'{name}.query_norm')
        read = deformable(queries, middles(grid, patch), values, [8, 16, 32], weights, f'{name}.attn', heads)
        patches = patches + weights[f'{name}.gamma'] * read  # equation 1
        x = torch.cat([tokens.x[:, :lead], patches[None]], dim=1)
        for block in vit.model.blocks[start:stop]:
            x = block(x) if tokens.rope is None else block(x, rope=tokens.rope)
        tokens, start = tokens._replace(x=x), stop
        recorded.append(x[0, lead:].T.unflatten(1, grid))
        for extractor in range(len(adapter.pyramid.extractors[number])):
            maps = extract(maps, recorded[-1], patch, weights, f'extractors.{number}.{extractor}', heads)
    up = functional.conv_transpose2d(maps[0][None], weights['up.weight'], weights['up.bias'], stride=2)[0]
    levels = [c1 + up[:, : c1.shape[1], : c1.shape[2]], *maps]
    added = recorded if adapter.pyramid.add_features == 'each' else [recorded[-1]] * 4
    if adapter.pyramid.add_features == 'none':
        added = [torch.zeros_like(recorded[-1])] * 4
    return [
        batch_norm(level + vit_at(x, stride, patch, tuple(level.shape[1:])), weights, f'norms.{number}')
        for number, (level, x, stride) in enumerate(zip(levels, added, (4, 8, 16, 32), strict=True))
    ]


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ('name', 'size', 'arguments'),
    [
        ('vit_tiny_patch16_224', (64, 32), dict(add_features='each')),
        ('vit_tiny_patch16_224', (48, 80), dict(add_features='each', deform_ratio=0.5)),
        ('vit_tiny_patch16_224', (16, 48), dict(add_features='last', layers=(0, 2))),
        ('vit_small_patch14_reg4_dinov2', (42, 70), dict(add_features='each')),
        ('vit_small_patch14_reg4_dinov2', (14, 28), dict(add_features='last', extra_extractors=0)),
        ('vit_small_patch16_dinov3', (80, 48), dict(add_features='none', layers=(1, 3))),
    ],
)
@torch.no_grad()
def test_equals_the_equations_of_the_paper_on_even_and_odd_sizes(name, size, arguments, float64):
    vit = tiny_vit(name, dict(embed_dim=24, num_heads=3) if 'dinov3' in name else None)
    adapter = shaken(ViTAdapter(vit, **LEAN, **arguments)).double().eval()
    img = torch.randn(3, *size)
    got = adapter(img[None]).maps
    wanted = reference(adapter, img)
    assert [tuple(x.shape[-2:]) for x in got] == [(-(-size[0] // s), -(-size[1] // s)) for s in adapter.strides]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one[0], other, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_reads_a_vit_as_the_injecting_one_does_whose_injectors_are_silent():
    vit = tiny_vit()
    injecting = shaken(ViTAdapter(vit, **LEAN)).eval()
    for injector in injecting.injectors:
        injector.gamma.zero_()
    reading = ReadingViTAdapter(24, 16, layers=(0, 1, 2, 3), **LEAN).eval()
    reading.pyramid.load_state_dict(injecting.pyramid.state_dict())
    imgs = torch.randn(2, 3, 48, 80)
    got = reading(vit(imgs, layers=reading.layers), imgs).maps
    for one, other in zip(got, injecting(imgs).maps, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_without_detail_the_other_maps_stay_the_same():
    vit = tiny_vit()
    whole = shaken(ViTAdapter(vit, **LEAN)).eval()
    coarse = ViTAdapter(vit, detail=False, **LEAN).eval()
    state = whole.state_dict()
    for part in ('prior.project', 'norms'):
        names = [name for name in state if name.startswith(f'pyramid.{part}.')]
        for name in sorted(names):
            number, leaf = name.removeprefix(f'pyramid.{part}.').split('.')
            value = state.pop(name)
            if number != '0':
                state[f'pyramid.{part}.{int(number) - 1}.{leaf}'] = value
    state = {name: value for name, value in state.items() if not name.startswith('pyramid.up.')}
    coarse.load_state_dict(state, strict=True)
    imgs = torch.randn(2, 3, 48, 80)
    assert coarse.strides == (8.0, 16.0, 32.0) and coarse.out_channels == (24,) * 3
    for one, other in zip(coarse(imgs).maps, whole(imgs).maps[1:], strict=True):
        torch.testing.assert_close(one, other)


def network_of(backbone: nn.Module, adapter: dict) -> SharedNetwork:
    branches = {'sem': dict(adapter=adapter, head=dict(type=LinearHead))}
    return SharedNetwork(backbone, branches, num_classes=dict(sem=5))


def trained(network: nn.Module) -> set[str]:
    """Train one step's backward pass; the names of what received a gradient."""
    network.train()(torch.randn(2, 3, 64, 64))['sem'].logits.square().mean().backward()
    return {name for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_no_graph_passes_through_a_frozen_vit_that_is_only_read():
    vit = tiny_vit(frozen=True)
    network = network_of(vit, dict(type=ReadingViTAdapter, layers=(0, 1, 2, 3), **LEAN))
    layers = vit(torch.randn(1, 3, 32, 32), layers=network.adapters['sem'].layers).layers
    assert not any(x.requires_grad for x in layers)
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained(network) == names and not any(name.startswith('backbone.') for name in names)


def test_injectors_of_a_frozen_vit_train_and_its_weights_do_not():
    network = network_of(ViTAdapter(tiny_vit(frozen=True), gamma_init=0.1, **LEAN), dict(type=BackboneMaps))
    names = trained(network)
    assert 'backbone.injectors.0.gamma' in names and not any(name.startswith('backbone.vit.') for name in names)
    with pytest.raises(ConfigError, match='in the precision of the run'):
        ViTAdapter(tiny_vit(frozen=True, amp='bf16'))


def test_blocks_that_are_not_read_are_frozen_and_all_else_is_trained():
    """At the start gamma is 0: the gradient reaches the injectors' own weights from the second step on."""
    network = network_of(ViTAdapter(tiny_vit(), layers=(0, 2), add_features='last', **LEAN), dict(type=BackboneMaps))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen and all(
        name.startswith(('backbone.vit.model.blocks.3', 'backbone.vit.model.norm')) for name in frozen
    )
    rest = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained(network) == rest


def test_a_classifier_on_the_same_pass_reads_the_vit_behind_the_injectors():
    branches = {
        'sem': dict(adapter=dict(type=BackboneMaps), head=dict(type=LinearHead)),
        'cls': dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='token')),
        'mid': dict(adapter=dict(type=PlainMaps, layers=(0,), normed=False), head=dict(type=LinearHead)),
    }
    adapter = shaken(ViTAdapter(tiny_vit(), layers=(1, 2), add_features='last', **LEAN))
    network = SharedNetwork(adapter, branches, num_classes=dict(sem=5, cls=3, mid=2)).eval()
    calls = []
    adapter.vit.model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    outputs = network(torch.randn(2, 3, 32, 48))
    assert {name: tuple(out.logits.shape) for name, out in outputs.items()} == {
        'sem': (2, 5, 8, 12),
        'cls': (2, 3),
        'mid': (2, 2, 2, 3),
    }
    assert len(calls) == 1
    with torch.no_grad():
        silent = adapter.vit(torch.zeros(1, 3, 32, 32), layers=[(3, True)]).layers[0]
        received = adapter(torch.zeros(1, 3, 32, 32), layers=[(-1, True)]).layers[0]
    assert not torch.allclose(silent, received)


def test_recomputing_changes_no_gradient():
    imgs, gradients = torch.randn(2, 3, 48, 32), []
    adapter = shaken(ViTAdapter(tiny_vit(), **LEAN)).train()
    for recompute in (False, True):
        adapter.checkpointing = adapter.vit.checkpointing = adapter.pyramid.checkpointing = recompute
        adapter.zero_grad()
        sum(x.square().mean() for x in adapter(imgs).maps).backward()
        gradients.append([parameter.grad.clone() for parameter in adapter.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients)


def test_one_process_needs_no_synchronised_norms_and_several_can_have_them():
    adapter = ViTAdapter(tiny_vit(), **LEAN).train()
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in adapter.modules())
    adapter(torch.randn(2, 3, 64, 64)).maps[0].sum().backward()
    several = nn.SyncBatchNorm.convert_sync_batchnorm(adapter)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in several.modules())


def test_layer_decay_is_for_the_vit_and_the_adapter_learns_at_the_full_rate():
    network = network_of(ViTAdapter(tiny_vit(), **LEAN), dict(type=BackboneMaps))
    rates = {name: group.lr for group in LayerDecay(decay=0.5).groups(network) for name in group.names}
    assert rates['backbone.vit.model.blocks.3.mlp.fc1.weight'] == pytest.approx(0.5)
    assert rates['backbone.vit.model.pos_embed'] == pytest.approx(0.5**5)
    assert {rate for name, rate in rates.items() if not name.startswith('backbone.vit.')} == {1.0}


def test_a_map_of_each_interaction_needs_four_of_them_and_layers_must_grow():
    with pytest.raises(ConfigError, match="use 'last'"):
        build(dict(type=ViTAdapter, layers=(0, 1)), vit=tiny_vit())
    for layers in ((1, 0), (0, 9), ()):
        with pytest.raises(ConfigError, match='layers must grow|no groups'):
            ViTAdapter(tiny_vit(), layers=layers, add_features='last')
    with pytest.raises(ConfigError, match='no maps of its own'):
        network_of(tiny_vit(), dict(type=BackboneMaps))
