"""The pyramids against a plain recomputation, and their strides and channels."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitdense.adapters.pyramid import LayerPyramid, SimplePyramid
from vitdense.errors import ConfigError
from vitdense.types import Features, LayerRequest

IMGS = torch.empty(0)


def randomise(module: nn.Module) -> None:
    for tensor in module.parameters():
        nn.init.normal_(tensor, std=0.3)


def layer_norm(x, weight, bias):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def up(x, prefix, state):
    return functional.conv_transpose2d(x, state[f'{prefix}.weight'], state[f'{prefix}.bias'], stride=2)


@pytest.mark.parametrize(('patch', 'strides'), [(16, (4, 8, 16, 32)), (14, (3.5, 7, 14, 28))])
@pytest.mark.parametrize('kind', [SimplePyramid, LayerPyramid])
def test_strides_follow_the_patch(kind, patch, strides):
    assert kind(8, patch).strides == strides


def test_simple_pyramid_equals_its_recomputation():
    adapter = SimplePyramid(8, 16, layer=5, channels=6)
    randomise(adapter)
    assert adapter.layers == (LayerRequest(5, False),)
    assert adapter.out_channels == (6,) * 4
    x, state = torch.randn(2, 8, 6, 4), adapter.state_dict()
    norm = layer_norm(up(x, 'stages.0.0', state), state['stages.0.1.weight'], state['stages.0.1.bias'])
    levels = [
        up(functional.gelu(norm), 'stages.0.3', state),
        up(x, 'stages.1', state),
        x,
        x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1)),
    ]
    got = adapter(Features(layers=(x,), input_size=(96, 64)), IMGS)
    assert [tuple(level.shape) for level in got.maps] == [(2, 6, 24, 16), (2, 6, 12, 8), (2, 6, 6, 4), (2, 6, 3, 2)]
    for index, level in enumerate(levels):
        for stage, padding in (('reduce', 0), ('smooth', 1)):
            level = functional.conv2d(level, state[f'{stage}.{index}.0.weight'], padding=padding)
            level = layer_norm(level, state[f'{stage}.{index}.1.weight'], state[f'{stage}.{index}.1.bias'])
        torch.testing.assert_close(got.maps[index], level, atol=1e-4, rtol=1e-4)


def test_the_extra_level_takes_every_second_cell():
    adapter = SimplePyramid(8, 16, channels=6, extra_level=True)
    assert (adapter.strides, adapter.out_channels) == ((4, 8, 16, 32, 64), (6,) * 5)
    maps = adapter(Features(layers=(torch.randn(1, 8, 8, 8),), input_size=(128, 128)), IMGS).maps
    assert torch.equal(maps[4], maps[3][:, :, ::2, ::2])


@pytest.mark.parametrize('grid', [(1, 1), (5, 3)])
@pytest.mark.parametrize('kind', [SimplePyramid, LayerPyramid])
def test_odd_grids_keep_their_last_cells(kind, grid):
    adapter = kind(8, 16)
    maps = adapter(Features(layers=(torch.randn(1, 8, *grid),) * len(adapter.layers)), IMGS).maps
    assert tuple(maps[3].shape[-2:]) == (-(-grid[0] // 2), -(-grid[1] // 2))


def test_layer_pyramid_norm_is_a_choice():
    norms = {norm: type(LayerPyramid(8, 16, norm=norm).stages[0][1]).__name__ for norm in ('batch', 'layer')}
    assert norms == {'batch': 'BatchNorm2d', 'layer': 'LayerNorm2d'}
    with pytest.raises(ConfigError, match="'batch', 'layer'"):
        LayerPyramid(8, 16, norm='sync')
    with pytest.raises(ValueError, match='reads 4 layers'):
        LayerPyramid(8, 16, layers=(1, 2))


def test_a_pyramid_of_some_scales_is_that_of_all_without_the_others():
    """detrex, dino_vitdet.py: scale_factors=(2.0, 1.0, 0.5) and a last level by max-pooling: strides 8 ... 64."""
    whole = SimplePyramid(8, 16, channels=6, extra_level=True)
    some = SimplePyramid(8, 16, channels=6, scales=(2.0, 1.0, 0.5), extra_level=True)
    assert some.strides == (8, 16, 32, 64) and some.out_channels == (6,) * 4
    randomise(whole)
    parts = {'stages', 'reduce', 'smooth'}
    state = {}
    for name, value in whole.state_dict().items():
        part, number, rest = name.split('.', 2)
        if part in parts and int(number):
            state[f'{part}.{int(number) - 1}.{rest}'] = value
    some.load_state_dict(state)
    features = Features(layers=(torch.randn(2, 8, 6, 4),), input_size=(96, 64))
    for got, wanted in zip(some(features, IMGS).maps, whole(features, IMGS).maps[1:], strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(ValueError, match='in this order'):
        SimplePyramid(8, 16, scales=(1.0, 2.0))
