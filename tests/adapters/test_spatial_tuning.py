"""The spatial tuning adapter against the encoder of transformers' DEIMv2, with random weights copied over."""

import pytest
import torch
from torch import nn

from vitdense.adapters.spatial_tuning import SpatialTuning
from vitdense.errors import ConfigError
from vitdense.registry import build
from vitdense.types import Features

deimv2 = pytest.importorskip('transformers.models.deimv2.modeling_deimv2')
transformers = pytest.importorskip('transformers')

NAMES = {
    'spatial_tuning_adapter.stem_conv.': 'stem.',
    **{f'spatial_tuning_adapter.conv{number}.': f'convs.{number - 2}.' for number in (2, 3, 4)},
    **{f'fusion_proj.{number}.': f'fuse.{number}.' for number in range(3)},
}


@pytest.fixture(scope='module')
def pair() -> tuple[nn.Module, SpatialTuning]:
    torch.manual_seed(0)
    backbone = transformers.DINOv3ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, out_indices=[1, 2, 3]
    )
    config = deimv2.Deimv2Config(
        backbone_config=backbone, backbone=None, encoder_hidden_dim=20, spatial_tuning_adapter_inplanes=6
    )
    theirs = deimv2.Deimv2DINOv3ConvEncoder(config).eval()
    ours = SpatialTuning(24, 16, layers=(0, 1, 2), channels=20, detail_channels=6).eval()
    state = {}
    for key, tensor in theirs.state_dict().items():
        if 'norm.' in key and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        for their_name, our_name in NAMES.items():
            if key.startswith(their_name):
                leaf = key.removeprefix(their_name).replace('conv.', '0.').replace('norm.', '1.')
                state[our_name + leaf] = tensor
    ours.load_state_dict(state, strict=True)
    return theirs, ours


@pytest.mark.parametrize('size', [(64, 64), (96, 32)])
def test_equal_to_transformers(pair, size):
    theirs, ours = pair
    imgs = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = Features(layers=tuple(theirs.backbone(imgs).feature_maps), input_size=size)
        for got, wanted in zip(ours(features, imgs).maps, theirs(imgs), strict=True):
            assert (got - wanted).abs().max() / wanted.abs().max() < 1e-5  # asked for: 1e-4


@pytest.mark.parametrize('patch', [14, 16])
def test_any_grid_runs(patch):
    """Transformers' encoder needs a multiple of 32 pixels; a map of stride s covers the image with whole cells."""
    ours = SpatialTuning(24, patch, channels=20, detail_channels=6)
    features = Features(layers=tuple(torch.randn(2, 24, 5, 3) for _ in range(3)))
    maps = ours(features, torch.randn(2, 3, 5 * patch, 3 * patch)).maps
    assert [tuple(x.shape[-2:]) for x in maps] == [(-(-5 * patch // s), -(-3 * patch // s)) for s in (8, 16, 32)]


def test_one_layer_serves_all_levels():
    ours = SpatialTuning(24, 16, layers=(-1,), channels=20)
    (layer,) = layers = (torch.randn(1, 24, 4, 4),)
    imgs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one = ours.eval()(Features(layers=layers), imgs).maps
        three = ours(Features(layers=(layer, layer, layer)), imgs).maps
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    with pytest.raises(ConfigError, match='3 layers or one'):
        build(dict(type=SpatialTuning, layers=(0, 1)), in_channels=24, patch_stride=16)
