"""LoRA: zero at first, few trainable parameters, and updates that merge into the weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError
from vitdense.layers.lora import Lora, LoraLinear, merge_lora
from vitdense.registry import build

SLIM = dict(depth=2, embed_dim=48, num_heads=3)
FAMILIES = {
    'vit_tiny_patch16_224': SLIM,
    'vit_small_patch14_reg4_dinov2': SLIM,
    'vit_small_patch16_dinov3': SLIM,
    'vit_base_patch16_siglip_224': SLIM,
    'vit_small_patch16_rope_mixed_224': SLIM,
    'eva02_tiny_patch14_224': SLIM,  # three projections, and a gated MLP
    'eva02_base_patch16_clip_224': SLIM,  # its attention takes the weight of its linear layer
    'vit_pe_spatial_tiny_patch16_512': SLIM,
}
EVERYTHING = Lora(rank=3, targets=('attn', 'mlp'))


def learned(vit: ViT) -> ViT:
    """Corrections as after training."""
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith('lora_b'):
                parameter.normal_(std=0.2)
    return vit


def maps(vit: ViT, imgs: Tensor) -> Tensor:
    return vit(imgs, layers=[(-1, True)]).layers[0]


def test_the_layer_computes_its_equation_in_float64() -> None:
    linear = nn.Linear(5, 7).double()
    layer = LoraLinear(linear, rank=2, scale=1.5)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = torch.einsum('oi,bni->bno', linear.weight + 1.5 * layer.lora_b @ layer.lora_a, x) + linear.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(layer.merged()(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize('name', FAMILIES)
def test_it_begins_as_nothing_and_every_correction_counts(name: str) -> None:
    torch.manual_seed(0)
    plain = ViT(name, timm_args=FAMILIES[name]).eval()
    vit = ViT(name, timm_args=FAMILIES[name], lora=EVERYTHING).eval()
    assert not vit.load_state_dict(plain.state_dict(), strict=False).unexpected_keys  # the weights keep their names
    imgs = torch.randn(2, 3, 2 * vit.patch_size, 3 * vit.patch_size)
    torch.testing.assert_close(maps(vit, imgs), maps(plain, imgs), atol=1e-6, rtol=1e-6)
    maps(vit, imgs).square().mean().backward()
    trained = {key: value for key, value in vit.named_parameters() if value.requires_grad}
    assert all(key.endswith(('lora_a', 'lora_b')) for key in trained)
    assert all(value.grad is not None and value.grad.any() for key, value in trained.items() if key.endswith('lora_b'))
    linear = [module for module in vit.model.blocks.modules() if type(module) is nn.Linear]
    assert len(trained) >= 2 * 4 * 2 and not linear


@pytest.mark.parametrize('name', FAMILIES)
def test_merged_weights_have_the_same_outputs(name: str) -> None:
    vit = learned(ViT(name, timm_args=FAMILIES[name], lora=EVERYTHING)).eval()
    imgs = torch.randn(2, 3, 2 * vit.patch_size, 3 * vit.patch_size)
    merged, plain = copy.deepcopy(vit), ViT(name, timm_args=FAMILIES[name]).eval()
    count = merge_lora(merged)
    assert count >= 8 and not any(isinstance(module, LoraLinear) for module in merged.modules())
    plain.load_state_dict(merged.state_dict())  # strict: nothing of LoRA is left
    with torch.no_grad():
        before = maps(vit, imgs)
        assert not torch.allclose(before, maps(ViT(name, timm_args=FAMILIES[name]).eval(), imgs), atol=1e-2)
        torch.testing.assert_close(maps(merged, imgs), before, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(maps(plain, imgs), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('recipe', [Lora(rank=8), Lora(rank=4, targets=('attn', 'mlp'))], ids=str)
@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch14_dinov2', 'vit_small_patch16_dinov3'])
def test_fewer_than_three_percent_are_trained(name: str, recipe: Lora) -> None:
    vit = ViT(name, lora=recipe)
    counts = [sum(value.numel() for value in vit.parameters() if value.requires_grad is kind) for kind in (True, False)]
    assert 0 < counts[0] / counts[1] < 0.03


def test_targets_are_parts_of_names() -> None:
    def chosen(*targets: str) -> set[str]:
        vit = ViT('vit_tiny_patch16_224', timm_args=SLIM, lora=Lora(targets=targets))
        return {name for name, module in vit.model.named_modules() if isinstance(module, LoraLinear)}

    assert chosen('attn.qkv') == chosen('qkv') == {'blocks.0.attn.qkv', 'blocks.1.attn.qkv'}
    assert chosen('blocks.1.mlp') == {'blocks.1.mlp.fc1', 'blocks.1.mlp.fc2'}
    assert chosen('attn', 'fc2') == {
        f'blocks.{i}.{part}' for i in (0, 1) for part in ('attn.qkv', 'attn.proj', 'mlp.fc2')
    }
    with pytest.raises(ConfigError, match="did you mean 'attn'"):
        chosen('atn')
    with pytest.raises(ConfigError, match='Lora.targets'):
        chosen()


def test_wrong_numbers_and_a_frozen_vit_are_errors() -> None:
    for wrong in (dict(rank=0), dict(dropout=1.0), dict(ranks=4)):
        with pytest.raises(ConfigError):
            build(dict(type=Lora, **wrong))
    with pytest.raises(ConfigError, match='frozen ViT cannot learn'):
        ViT('vit_tiny_patch16_224', timm_args=SLIM, lora=dict(type=Lora), frozen=True)


@pytest.mark.parametrize(
    'windows', [None, dict(type='vitdense.backbones.windows.WindowPartition', size=2, global_blocks=(-1,))]
)
def test_recomputed_blocks_give_the_same_gradient(windows: dict | None) -> None:
    gradients = []
    imgs, valid = torch.randn(2, 3, 64, 48), torch.ones(2, 64, 48, dtype=torch.bool)
    valid[0, 48:], valid[1, :, 32:] = False, False
    for checkpointing in (False, True):
        torch.manual_seed(1)
        recipe = Lora(rank=2, targets=('attn', 'mlp'), dropout=0.3)
        vit = ViT(
            'vit_tiny_patch16_224',
            timm_args=SLIM,
            lora=recipe,
            windows=windows,
            checkpointing=checkpointing,
            drop_path=0.5,
        )
        learned(vit).train()
        torch.manual_seed(2)
        vit(imgs, valid, layers=[(-1, True)]).layers[0].square().mean().backward()
        gradients.append({name: value.grad for name, value in vit.named_parameters() if value.requires_grad})
    for name, plain in gradients[0].items():
        assert plain.any()
        torch.testing.assert_close(gradients[1][name], plain)


def test_a_vit_with_lora_exports() -> None:
    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = learned(ViT('vit_tiny_patch16_224', timm_args=SLIM, lora=EVERYTHING)).eval()

        def forward(self, imgs: Tensor) -> Tensor:
            return maps(self.vit, imgs)

    model, imgs = Exported(), torch.randn(1, 3, 32, 48)
    program = torch.export.export(model, (imgs,)).module()
    torch.testing.assert_close(program(imgs), model(imgs), atol=1e-5, rtol=1e-5)
