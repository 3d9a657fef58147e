"""Tables of positions in weight files: the grid is what the user says, and a guess is never silent."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from vitdense.backbones.vit import ViT
from vitdense.errors import CheckpointError, ConfigError

SLIM = dict(depth=2, embed_dim=64, num_heads=2)


def trained(size: tuple[int, int], path: Path, name: str = 'vit_tiny_patch16_224') -> VisionTransformer:
    """Return timm's own model for images of `size` pixels with random positions, written at `path`."""
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size, num_classes=0, **SLIM).eval()
    torch.nn.init.normal_(model.pos_embed)
    save_file(model.state_dict(), path)
    return model


def load(path: Path, name: str = 'vit_tiny_patch16_224', **arguments: object) -> ViT:
    return ViT(name, pretrained=path, timm_args=SLIM, **arguments).eval()


@pytest.mark.parametrize('size', [(96, 160), (64, 256), (112, 448), (448, 112), (224, 224)])
@pytest.mark.parametrize('argument', ['img_size', 'pretrained_img_size'])
def test_a_table_has_the_grid_that_is_said(tmp_path: Path, size: tuple[int, int], argument: str) -> None:
    own = trained(size, tmp_path / 'a.safetensors')
    vit = load(tmp_path / 'a.safetensors', **{argument: size})
    assert vit.grid == (size[0] // 16, size[1] // 16)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = own.forward_features(x)[0, 1:].T
        torch.testing.assert_close(vit(x, layers=[(-1, True)]).layers[0].flatten(2)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size', [(96, 160), (112, 448)])
def test_a_table_of_one_size_is_loaded_for_images_of_another(tmp_path: Path, size: tuple[int, int]) -> None:
    own = trained(size, tmp_path / 'a.safetensors')
    vit = load(tmp_path / 'a.safetensors', pretrained_img_size=size, img_size=(128, 256))
    grid = (size[0] // 16, size[1] // 16)
    expected = resample_abs_pos_embed(own.pos_embed, new_size=(8, 16), old_size=grid, num_prefix_tokens=1)
    torch.testing.assert_close(vit.model.pos_embed, expected)


def test_the_first_position_of_dinov2_with_registers_is_that_of_its_class_token(tmp_path: Path) -> None:
    name = 'vit_small_patch14_reg4_dinov2'
    own = trained((84, 140), tmp_path / 'a.safetensors', name)
    state = {key: value for key, value in own.state_dict().items() if key not in ('reg_token', 'pos_embed')}
    positions = torch.cat([torch.zeros(1, 1, 64), own.pos_embed], dim=1)
    theirs = {'register_tokens': own.reg_token, 'mask_token': torch.zeros(1, 64), 'pos_embed': positions}
    torch.save(state | {key: value.detach() for key, value in theirs.items()}, tmp_path / 'theirs.pth')
    vit = load(tmp_path / 'theirs.pth', name, img_size=(84, 140))
    assert vit.grid == (6, 10)
    assert torch.equal(vit.model.pos_embed, own.pos_embed)


def test_an_unknown_grid_is_an_error_with_the_sizes_that_are_possible(tmp_path: Path) -> None:
    trained((96, 160), tmp_path / 'a.safetensors')
    with pytest.raises(CheckpointError, match='60 positions is not square') as caught:
        load(tmp_path / 'a.safetensors')
    assert 'img_size=(H, W)' in caught.value.fix and '(96, 160)' in caught.value.fix
    with pytest.raises(CheckpointError, match='60 positions is not square') as caught:
        load(tmp_path / 'a.safetensors', img_size=(128, 256))
    assert 'pretrained_img_size=(H, W)' in caught.value.fix
    for wrong in ((64, 256), (100, 160)):
        with pytest.raises(ConfigError, match='the table 60 positions'):
            load(tmp_path / 'a.safetensors', pretrained_img_size=wrong)


def test_a_guess_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained((64, 256), tmp_path / 'a.safetensors')
    with caplog.at_level(logging.WARNING, 'vitdense'):
        assert load(tmp_path / 'a.safetensors').grid == (8, 8)
    assert 'read as a square, 8 x 8' in caplog.text and 'img_size=(H, W)' in caplog.text
    caplog.clear()
    trained((112, 448), tmp_path / 'a.safetensors')
    with caplog.at_level(logging.WARNING, 'vitdense'):
        load(tmp_path / 'a.safetensors', img_size=(112, 448))
    assert 'read as 7 x 28, from img_size; pretrained_img_size=(224, 224)' in caplog.text
    caplog.clear()
    trained((224, 224), tmp_path / 'a.safetensors')
    with caplog.at_level(logging.WARNING, 'vitdense'):
        load(tmp_path / 'a.safetensors')
        load(tmp_path / 'a.safetensors', img_size=(320, 240))
    assert not caplog.text


def test_published_weights_have_the_usual_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm says at which size its weights were trained: img_size is the wanted one alone."""
    own = trained((224, 224), tmp_path / 'model.safetensors')
    path = str(tmp_path / 'model.safetensors')
    monkeypatch.setattr('vitdense.pretrained.creation.try_to_load_from_cache', lambda *_: path)
    vit = ViT('vit_tiny_patch16_224', pretrained=True, img_size=(112, 448), timm_args=SLIM)
    expected = resample_abs_pos_embed(own.pos_embed, new_size=(7, 28), old_size=(14, 14), num_prefix_tokens=1)
    torch.testing.assert_close(vit.model.pos_embed, expected)


@pytest.mark.parametrize('channels', [1, 4])
def test_weights_for_other_channels_are_named(tmp_path: Path, channels: int) -> None:
    model = timm.create_model('vit_tiny_patch16_224', in_chans=channels, num_classes=0, **SLIM)
    save_file(model.state_dict(), tmp_path / 'a.safetensors')
    with pytest.raises(CheckpointError, match=f'read images of {channels} channel'):
        load(tmp_path / 'a.safetensors')
    with pytest.raises(ConfigError, match=f'in_chans = {channels}'):
        ViT('vit_tiny_patch16_224', timm_args=dict(SLIM, in_chans=channels))


def test_patches_that_are_not_square_are_named(tmp_path: Path) -> None:
    own = trained((224, 224), tmp_path / 'a.safetensors')
    save_file(own.state_dict() | {'patch_embed.proj.weight': torch.zeros(64, 3, 16, 32)}, tmp_path / 'a.safetensors')
    with pytest.raises(CheckpointError, match='patches of 16 x 32'):
        load(tmp_path / 'a.safetensors')
