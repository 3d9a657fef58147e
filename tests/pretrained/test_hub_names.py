"""Names of models: those of timm's hub are taken, those of other publishers are translated in the error."""

from pathlib import Path

import pytest
import timm

from vitdense.backbones.vit import ViT
from vitdense.checkpoints.descriptions import check_recipes
from vitdense.errors import CheckpointError, ConfigError
from vitdense.pretrained.hub_names import plain_name, timm_name

NAMES = {
    'dinov2_vits14': 'vit_small_patch14_dinov2.lvd142m',
    'dinov2_vitg14_reg': 'vit_giant_patch14_reg4_dinov2.lvd142m',
    'dinov2_vitb14_reg4_pretrain.pth': 'vit_base_patch14_reg4_dinov2.lvd142m',
    'facebook/dinov2-with-registers-large': 'vit_large_patch14_reg4_dinov2.lvd142m',
    'facebook/dinov2-small': 'vit_small_patch14_dinov2.lvd142m',
    'dinov3_vits16': 'vit_small_patch16_dinov3.lvd1689m',
    'dinov3_vith16plus': 'vit_huge_plus_patch16_dinov3.lvd1689m',
    'facebook/dinov3-vits16plus-pretrain-lvd1689m': 'vit_small_plus_patch16_dinov3.lvd1689m',
    'facebook/dinov3-vitl16-pretrain-sat493m': 'vit_large_patch16_dinov3.sat493m',
    'facebook/dinov3-vit7b16-pretrain-lvd1689m': 'vit_7b_patch16_dinov3.lvd1689m',
    'mae_pretrain_vit_base': 'vit_base_patch16_224.mae',
    'facebook/vit-mae-huge': 'vit_huge_patch14_224.mae',
    'dino_vits8': 'vit_small_patch8_224.dino',
    'facebook/dino-vitb16': 'vit_base_patch16_224.dino',
    'google/vit-base-patch16-224-in21k': 'vit_base_patch16_224.augreg_in21k',
    'google/vit-large-patch16-384': 'vit_large_patch16_384.augreg_in21k_ft_in1k',
    'ViT-B_16': 'vit_base_patch16_224.augreg_in21k',
    'facebook/deit-tiny-patch16-224': 'deit_tiny_patch16_224.fb_in1k',
    'facebook/deit-base-distilled-patch16-224': 'deit_base_distilled_patch16_224.fb_in1k',
    'google/siglip-base-patch16-224': 'vit_base_patch16_siglip_224.webli',
    'google/siglip2-large-patch16-512': 'vit_large_patch16_siglip_512.v2_webli',
    'google/siglip-so400m-patch14-384': 'vit_so400m_patch14_siglip_384.webli',
    'openai/clip-vit-large-patch14': 'vit_large_patch14_clip_quickgelu_224.openai',
}


@pytest.mark.parametrize('name', NAMES)
def test_names_of_publishers_lead_to_weights_that_timm_has(name: str) -> None:
    assert timm_name(name) == NAMES[name]
    assert NAMES[name] in timm.list_pretrained(NAMES[name])
    with pytest.raises(ConfigError) as caught:
        ViT(name)
    assert f"name='{NAMES[name]}'" in caught.value.fix


@pytest.mark.parametrize('prefix', ['hf_hub:timm/', 'hf-hub:timm/', 'timm/', 'https://huggingface.co/timm/'])
def test_the_address_of_timms_hub_is_a_name(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = 'vit_tiny_patch16_224.augreg_in21k'
    assert plain_name(prefix + name) == name
    assert ViT(prefix + name, timm_args=dict(depth=1)).depth == 1
    requested = []
    monkeypatch.setattr(
        'vitdense.pretrained.creation.try_to_load_from_cache', lambda *options: requested.append(options)
    )
    monkeypatch.setattr('vitdense.pretrained.creation.reach', lambda _: (_ for _ in ()).throw(OSError('offline')))
    with pytest.raises(CheckpointError, match='could not get the weights'):
        ViT(prefix + name, pretrained=True, timm_args=dict(depth=1))
    assert requested == [(f'timm/{name}', 'model.safetensors')]


def test_a_model_folder_may_hold_such_a_name_and_no_other_address() -> None:
    part = {'type': 'vitdense.backbones.vit.ViT', 'name': 'hf_hub:timm/vit_tiny_patch16_224'}
    check_recipes([part], path := Path('model.json'))
    with pytest.raises(CheckpointError, match='points outside'):
        check_recipes([{**part, 'name': 'hf_hub:somebody/vit'}], path)


def test_other_names_are_refused_without_nonsense() -> None:
    with pytest.raises(ConfigError, match='address of a model on a hub|is no name of timm'):
        ViT('hf_hub:somebody/vit')
    with pytest.raises(ConfigError, match="did you mean 'vit_small_patch14_dinov2'"):
        ViT('vit_small_patch14_dinov')
    with pytest.raises(ConfigError, match='not a plain Vision Transformer'):
        ViT('beit_base_patch16_224')
