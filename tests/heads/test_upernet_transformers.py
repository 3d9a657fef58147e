"""UPerNet and its pyramid against the independent implementation of transformers, with random weights copied over."""

import pytest
import torch
from torch import nn

from vitdense.adapters.pyramid import LayerPyramid
from vitdense.heads.upernet import UPerNetHead
from vitdense.types import Features

upernet = pytest.importorskip('transformers.models.upernet.modeling_upernet')
configuration = pytest.importorskip('transformers.models.upernet.configuration_upernet')
beit = pytest.importorskip('transformers.models.beit.modeling_beit')

IN_CHANNELS = [12, 10, 8, 14]
NAMES = {  # theirs -> ours
    'psp_modules.{}.1': 'pooling.projections.{}',
    'bottleneck': 'pooling.bottleneck',
    'lateral_convs.{}': 'laterals.{}',
    'fpn_convs.{}': 'smooths.{}',
    'fpn_bottleneck': 'fuse',
}


def randomise(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1).add_(1.0 if 'norm.' in name and 'bias' not in name else 0.0).abs_()
            if 'conv.weight' in name or 'classifier' in name:
                tensor.mul_(torch.sign(torch.randn_like(tensor)))


def our_weights(theirs: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    state = theirs.state_dict()
    ours = {f'classifier.{leaf}': state.pop(f'classifier.{leaf}') for leaf in ('weight', 'bias')}
    for key, tensor in state.items():
        for their_name, our_name in names.items():
            for number in range(4):
                prefix = their_name.format(number) + '.'
                if key.startswith(prefix):
                    leaf = key[len(prefix) :].replace('batch_norm', 'norm')
                    ours[f'{our_name.format(number)}.{leaf}'] = tensor
    return ours


@pytest.fixture(scope='module')
def pair():
    torch.manual_seed(0)
    config = configuration.UperNetConfig(hidden_size=16, auxiliary_channels=6, num_labels=5)
    decode, aux = upernet.UperNetHead(config, IN_CHANNELS), upernet.UperNetFCNHead(config, IN_CHANNELS)
    randomise(decode), randomise(aux)
    head = UPerNetHead(IN_CHANNELS, (4, 8, 16, 32), 5, channels=16, aux_channels=6)
    state = our_weights(decode, NAMES)
    aux_state = our_weights(aux, {'convs.0': '0', 'classifier': '2'})
    aux_state = {key.replace('classifier', '2'): tensor for key, tensor in aux_state.items()}
    head.load_state_dict(state | {f'aux.{key}': tensor for key, tensor in aux_state.items()}, strict=True)
    return decode.eval(), aux.eval(), head.eval()


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize('grid', [(32, 32), (24, 40), (36, 20), (29, 43), (7, 7)])
def test_equal_to_transformers_on_even_and_odd_grids(pair, grid):
    decode, aux, head = pair
    sizes = [(-(-grid[0] // step), -(-grid[1] // step)) for step in (1, 2, 4, 8)]
    maps = tuple(torch.randn(2, channels, *size) for channels, size in zip(IN_CHANNELS, sizes, strict=True))
    with torch.no_grad():
        outputs = head(Features(maps=maps, input_size=(128, 128)))
        assert relative_error(outputs.logits, decode(maps)) < 1e-5  # asked for: 1e-4
        assert relative_error(head.aux(maps[2]), aux(maps)) < 1e-5
    assert outputs.aux == ()


def test_layer_pyramid_equals_the_neck_of_beit():
    neck = beit.BeitFPNNeck(beit.BeitConfig(hidden_size=12)).eval()
    randomise(neck)
    adapter = LayerPyramid(12, 16).eval()
    mine = {'fpn1.conv_transpose1': '0.0', 'fpn1.normalization': '0.1', 'fpn1.conv_transpose2': '0.3', 'fpn2': '1'}
    state = {}
    for key, tensor in neck.state_dict().items():
        name, leaf = key.rsplit('.', 1)
        state[f'stages.{mine[name]}.{leaf}'] = tensor
    adapter.load_state_dict(state, strict=True)
    layers = tuple(torch.randn(2, 12, 6, 8) for _ in range(4))
    with torch.no_grad():
        for got, wanted in zip(adapter(Features(layers=layers), torch.empty(0)).maps, neck(layers), strict=True):
            assert relative_error(got, wanted) < 1e-5
