"""The convolutional stem: the interface of a ViT is unchanged, and padding does not reach the image."""

import pytest
import torch

from vitdense.backbones.stem import ConvStem
from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError

ARGS = {'embed_dim': 32, 'depth': 2, 'num_heads': 2}


def vit(**more):
    return ViT('vit_tiny_patch16_224', patch_size=8, img_size=64, stem='conv', timm_args=ARGS, **more)


def test_maps_are_at_patch_stride_and_every_size_runs():
    backbone = vit()
    (recorded,) = backbone(torch.rand(2, 3, 48, 80), layers=[(-1, True)]).layers
    assert recorded.shape == (2, 32, 6, 10) and backbone.divisor == 8


def test_every_parameter_learns_and_the_stem_is_the_lowest_layer():
    backbone = vit()
    backbone(torch.rand(2, 3, 32, 32), layers=[(-1, True)]).layers[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    stem = [name for name, _ in backbone.named_parameters() if 'patch_embed' in name]
    assert len(stem) == 3 * 2 * 3 + 2 and {backbone.layer_of(name) for name in stem} == {0}


def test_a_padded_batch_has_the_outputs_of_the_single_image():
    backbone = vit()
    backbone(torch.rand(4, 3, 64, 64), layers=[(-1, True)])  # running statistics that are not the first ones
    backbone.eval()
    img = torch.rand(1, 3, 40, 24)
    padded = torch.randn(2, 3, 64, 48)
    padded[0, :, :40, :24] = img[0]
    valid = torch.ones(2, 64, 48, dtype=torch.bool)
    valid[0, 40:], valid[0, :, 24:] = False, False
    padded = padded * valid[:, None]
    with torch.no_grad():
        (alone,) = backbone(img, layers=[(-1, True)]).layers
        (among,) = backbone(padded, valid, layers=[(-1, True)]).layers
    assert torch.allclose(among[:1, :, :5, :3], alone, atol=1e-5)


def test_what_cannot_be_is_an_error():
    with pytest.raises(ConfigError, match='ViT.patch_size = 12'):
        ConvStem(64, 12, (4, 4))
    with pytest.raises(ConfigError, match='trains from scratch'):
        ViT('vit_tiny_patch16_224', stem='conv', pretrained=True)
    with pytest.raises(ConfigError):
        ViT('vit_tiny_patch16_224', stem='convolution')
