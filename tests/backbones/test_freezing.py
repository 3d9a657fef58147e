"""Frozen layers: no gradient, evaluation mode, and everything as before once they are unfrozen."""

import pytest
import torch

from vitdense.backbones.vit import ViT
from vitdense.layers.lora import Lora

SLIM = dict(depth=3, embed_dim=48, num_heads=3)


def trained(vit: ViT) -> set[str]:
    return {name for name, parameter in vit.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize('name', ['vit_small_patch14_reg4_dinov2', 'vit_small_patch16_dinov3'])
@pytest.mark.parametrize('lora', [None, Lora(rank=2)], ids=['plain', 'lora'])
def test_layers_below_rest_and_the_others_learn(name: str, lora: Lora | None) -> None:
    vit = ViT(name, timm_args=SLIM, drop_path=0.5, lora=lora).train()
    before = trained(vit)
    imgs = torch.randn(2, 3, 2 * vit.patch_size, 2 * vit.patch_size)
    for layer in (5, 3, 1, 0, 4, 0):
        vit.freeze_below(layer)
        vit.train()
        assert trained(vit) == {name for name in before if vit.layer_of(name) >= layer}
        assert [block.training for block in vit.model.blocks] == [index + 1 >= layer for index in range(3)]
        assert vit.training is (layer < 5) and vit.model.pos_drop.training is (layer == 0)
        maps = vit(imgs, layers=[(-1, True)]).layers[0]
        assert maps.requires_grad is bool(trained(vit))
    assert trained(vit) == before and all(module.training for module in vit.modules())


def test_freezing_leaves_the_training_mode_unchanged() -> None:
    vit = ViT('vit_tiny_patch16_224', timm_args=SLIM).train()
    vit.freeze_below(5)
    vit.freeze_below(0)
    assert vit.training  # the loop calls train() before, not after, a schedule frees it
    vit.eval().freeze_below(2)
    assert not any(module.training for module in vit.modules())


def test_the_graph_ends_at_the_lowest_free_layer() -> None:
    vit = ViT('vit_tiny_patch16_224', timm_args=SLIM).train()
    vit.freeze_below(3)
    tokens = vit.run(vit.embed(torch.randn(1, 3, 32, 32)), 0, 2)
    assert not tokens.x.requires_grad and vit.run(tokens, 2).x.requires_grad
