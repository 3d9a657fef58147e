"""Pretrained backbones: files of other shapes and names, resampling, no network."""

import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch.nn import functional
from torchvision.transforms.v2.functional import pil_to_tensor

from vitdense.backbones.vit import ViT
from vitdense.errors import CheckpointError
from vitdense.types import LayerRequest

SLIM = {'depth': 2}
LAST = [LayerRequest(-1, True)]


def saved(vit: ViT, path: Path, prefix: str = '', **changes: torch.Tensor) -> str:
    state = {f'{prefix}{name}': value.clone() for name, value in vit.model.state_dict().items()}
    save_file(state | changes, path)
    return str(path)


def slim(name: str = 'vit_tiny_patch16_224', **arguments) -> ViT:
    return ViT(name, timm_args=SLIM, **arguments).eval()


def test_a_file_fills_the_model_and_its_classifier_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = slim()
    head = {'head.weight': torch.zeros(1000, 192), 'head.bias': torch.zeros(1000)}
    with caplog.at_level(logging.INFO, 'vitdense'):
        vit = slim(pretrained=saved(source, tmp_path / 'a.safetensors', **head))
    assert all(torch.equal(value, vit.state_dict()[name]) for name, value in source.state_dict().items())
    assert 'not used: head.bias, head.weight' in caplog.text


def test_a_prefix_is_stripped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = slim()
    with caplog.at_level(logging.INFO, 'vitdense'):
        vit = slim(pretrained=saved(source, tmp_path / 'a.safetensors', 'backbone.'), img_size=(320, 240))
    assert "100 % of 1.1 M parameters matched after stripping the prefix 'backbone.'" in caplog.text
    assert torch.equal(vit.model.blocks[1].norm1.weight, source.model.blocks[1].norm1.weight)
    assert vit.model.patch_embed.grid_size == (20, 15)


def test_the_table_of_a_file_is_kept_or_resampled_once_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = slim(img_size=256)  # 16 x 16, where the model by this name has 14 x 14
    path = saved(source, tmp_path / 'a.safetensors')
    kept = slim(pretrained=path)
    assert torch.equal(kept.model.pos_embed, source.model.pos_embed)
    with caplog.at_level(logging.INFO, 'vitdense'):
        resampled = slim(pretrained=path, img_size=(320, 240))
    assert 'table of positions resampled from 16 x 16 to 20 x 15' in caplog.text
    expected = resample_abs_pos_embed(source.model.pos_embed, new_size=(20, 15), num_prefix_tokens=1)
    torch.testing.assert_close(resampled.model.pos_embed, expected)
    again = slim(pretrained=saved(resampled, tmp_path / 'b.safetensors'), img_size=(320, 240))
    assert torch.equal(again.model.pos_embed, resampled.model.pos_embed)  # a table that is not square comes back


def test_a_new_patch_size_resamples_the_kernel_and_keeps_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = slim('vit_small_patch14_dinov2')
    with caplog.at_level(logging.INFO, 'vitdense'):
        vit = slim('vit_small_patch14_dinov2', pretrained=saved(source, tmp_path / 'a.safetensors'), patch_size=16)
    assert 'patch kernel resampled from 14 x 14 to 16 x 16' in caplog.text
    assert vit.divisor == 16
    expected = resample_patch_embed(source.model.patch_embed.proj.weight, [16, 16])
    torch.testing.assert_close(vit.model.patch_embed.proj.weight, expected)
    assert torch.equal(vit.model.pos_embed, source.model.pos_embed)
    back = slim('vit_small_patch14_dinov2', pretrained=saved(vit, tmp_path / 'b.safetensors'), patch_size=16)
    assert torch.equal(back.model.patch_embed.proj.weight, vit.model.patch_embed.proj.weight)


def test_a_vit_without_class_token_takes_weights_that_have_one(tmp_path: Path) -> None:
    source = slim(img_size=240)
    path = saved(source, tmp_path / 'a.safetensors')
    vit = ViT('vit_tiny_patch16_224', pretrained=path, timm_args=SLIM | dict(class_token=False))
    assert not vit.has_cls and vit.num_prefix_tokens == 0
    assert torch.equal(vit.model.pos_embed, source.model.pos_embed[:, 1:])
    assert vit(torch.rand(1, 3, 32, 48), layers=LAST).cls == ()


def test_layer_scale_is_loaded_and_never_dropped(tmp_path: Path) -> None:
    source = slim('vit_small_patch14_dinov2')
    with torch.no_grad():
        source.model.blocks[1].ls2.gamma += torch.randn(384)
    path = saved(source, tmp_path / 'a.safetensors')
    vit = slim('vit_small_patch14_dinov2', pretrained=path)
    assert torch.equal(vit.model.blocks[1].ls2.gamma, source.model.blocks[1].ls2.gamma)
    with pytest.raises(CheckpointError, match='no place in the model: .*ls1.gamma'):
        slim('vit_small_patch16_224', pretrained=path)  # all its parameters match: still not the same network


def deit3(state: dict) -> dict:
    return {name.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): state[name] for name in state}


def dinov2(state: dict) -> dict:
    return {'teacher': {f'backbone.{name}': state[name] for name in state} | {'backbone.mask_token': torch.zeros(1)}}


def eva02(state: dict) -> dict:
    return {name.replace('norm.', 'fc_norm.') if name.startswith('norm.') else name: state[name] for name in state}


@pytest.mark.parametrize(
    ('name', 'rename'),
    [('deit3_small_patch16_224', deit3), ('vit_small_patch14_dinov2', dinov2), ('eva02_tiny_patch14_224', eva02)],
)
def test_names_of_other_publishers(tmp_path: Path, name: str, rename: Callable[[dict], dict]) -> None:
    """DeiT-III calls LayerScale gamma_1, DINOv2 keeps a mask token, EVA-02 puts the norm behind the pooling."""
    source = slim(name)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += torch.randn_like(parameter)
    torch.save(rename(source.model.state_dict()), tmp_path / 'a.pth')
    vit = slim(name, pretrained=tmp_path / 'a.pth')
    assert all(torch.equal(value, vit.state_dict()[key]) for key, value in source.state_dict().items())


def test_weights_of_another_model_are_an_error_with_the_share(tmp_path: Path) -> None:
    torch.save({'conv1.weight': torch.zeros(64, 3, 7, 7)}, tmp_path / 'resnet.pth')
    with pytest.raises(CheckpointError, match='0 % of 1.1 M parameters matched'):
        slim(pretrained=tmp_path / 'resnet.pth')
    path = saved(slim('vit_small_patch14_reg4_dinov2'), tmp_path / 'dino.safetensors')
    for name in ('vit_tiny_patch16_224', 'deit3_small_patch16_224', 'eva02_tiny_patch14_224'):
        with pytest.raises(CheckpointError, match='parameters matched'):
            slim(name, pretrained=path)
    shorter = ViT('vit_tiny_patch16_224', timm_args={'depth': 1})
    path = saved(shorter, tmp_path / 'short.safetensors')
    with pytest.raises(CheckpointError, match='missing in the file: blocks.1'):
        slim(pretrained=path)
    vit = slim(pretrained=path, partial_weights=True)
    assert torch.equal(vit.model.blocks[0].norm1.weight, shorter.model.blocks[0].norm1.weight)


def test_without_a_network_one_error_names_the_file_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError('Name or service not known')

    monkeypatch.setattr(urllib.request, 'urlopen', unreachable)
    monkeypatch.setattr('vitdense.pretrained.creation.try_to_load_from_cache', lambda *_: None)
    with pytest.raises(CheckpointError) as caught:
        slim(pretrained=True)
    error = caught.value
    assert error.where == 'model.safetensors of timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k'
    assert 'pretrained=path/model.safetensors (vitdense finetune: --backbone-weights)' in error.fix
    assert 'https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k' in error.fix
    assert error.__cause__ is None and error.__suppress_context__  # no traceback of sockets


def test_a_cached_file_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = slim()
    path = saved(source, tmp_path / 'model.safetensors')
    monkeypatch.setattr('vitdense.pretrained.creation.try_to_load_from_cache', lambda *_: path)
    assert torch.equal(slim(pretrained=True).model.pos_embed, source.model.pos_embed)


def test_what_timm_downloads_is_loaded_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    source = slim()
    state = {name: value.half() for name, value in source.model.state_dict().items()}
    monkeypatch.setattr('vitdense.pretrained.creation.try_to_load_from_cache', lambda *_: None)
    monkeypatch.setattr('vitdense.pretrained.creation.reach', lambda _: None)
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', lambda *_, **__: dict(state))
    vit = slim(pretrained=True)
    torch.testing.assert_close(vit.model.pos_embed, source.model.pos_embed, atol=1e-3, rtol=1e-3)
    del state['blocks.1.norm1.weight']
    with pytest.raises(CheckpointError, match='blocks.1.norm1.weight'):
        slim(pretrained=True)


def image(shared: Path, side: int, vit: ViT) -> torch.Tensor:
    path = sorted((shared / 'imagenette160').glob('*/*/*.[jJ]*'))[0]
    img = pil_to_tensor(Image.open(path).convert('RGB').resize((side, side)))[None] / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (vit.mean, vit.std))
    return (img - mean) / std


def test_real_vit_tiny_classifies_real_images_through_our_pass(shared: Path) -> None:
    """The class token that leaves the last norm, read by the checkpoint's own classifier."""
    path = shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors'
    vit = ViT('vit_tiny_patch16_224', pretrained=path, frozen=True)
    head = load_file(path)
    classes = {'n01440764': 0, 'n02102040': 217, 'n02979186': 482, 'n03000684': 491, 'n03028079': 497}
    classes |= {'n03394916': 566, 'n03417042': 569, 'n03425413': 571, 'n03445777': 574, 'n03888257': 701}
    right = []
    for folder in sorted((shared / 'imagenette160' / 'val').iterdir()):
        files = sorted(folder.iterdir())[:3]
        imgs = torch.stack([pil_to_tensor(Image.open(file).convert('RGB').resize((224, 224))) for file in files])
        cls = vit((imgs / 255 - 0.5) / 0.5, layers=LAST).cls[0]
        logits = cls @ head['head.weight'].float().T + head['head.bias'].float()
        right.append(logits.argmax(1) == classes[folder.name])
    assert torch.cat(right).float().mean() > 0.6


def test_real_dinov2_has_similar_features_at_patch_16_and_14(shared: Path) -> None:
    """The same grid over the image at 14/16 of its size: maps must agree (FlexiViT's promise)."""
    path = shared / 'weights' / 'dinov2_vits14_fp16.safetensors'
    native, resampled = (
        ViT('vit_small_patch14_dinov2', pretrained=path, frozen=True, patch_size=size) for size in (None, 16)
    )
    assert native.model.blocks[0].ls1.gamma.abs().max() < 5
    assert resampled.model.pos_embed.shape == (1, 1 + 37 * 37, 384)
    maps = [vit(image(shared, side, vit), layers=LAST).layers[0] for vit, side in ((native, 224), (resampled, 256))]
    assert maps[0].shape == maps[1].shape == (1, 384, 16, 16)
    assert functional.cosine_similarity(*maps, dim=1).mean() > 0.9
