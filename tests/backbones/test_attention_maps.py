"""Rows of one attention equal those of the whole matrix, in every family."""

import pytest
import torch

from vitdense.backbones.attention_maps import attention_rows
from vitdense.backbones.vit import ViT
from vitdense.errors import ConfigError

FAMILIES = [
    'vit_tiny_patch16_224',
    'vit_small_patch14_reg4_dinov2',
    'vit_small_patch16_dinov3',
    'eva02_tiny_patch14_224',
    'vit_small_patch16_rope_mixed_224',
]


@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_rows_are_those_that_mix_the_values(name):
    """The rows times the values, through the projection, are the output of the block's attention."""
    vit = ViT(name, timm_args=dict(depth=2)).eval()
    tokens = vit.embed(torch.randn(2, 3, 3 * vit.patch_size, 4 * vit.patch_size))
    recorded = {}
    block = vit.model.blocks[1].attn
    block.register_forward_hook(lambda module, inputs, output: recorded.update(inputs=inputs[0], output=output))
    rows = [0, 7, tokens.x.shape[1] - 1]
    after, attention = attention_rows(vit, vit.run(tokens, 0, 1), 1, rows)
    assert attention.shape == (2, len(attention[0]), 3, tokens.x.shape[1])
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    torch.testing.assert_close(after.x, vit.run(tokens).x)

    x = recorded['inputs']
    if getattr(block, 'qkv', None) is not None:
        bias = block.qkv.bias
        if getattr(block, 'q_bias', None) is not None:
            bias = torch.cat([block.q_bias, torch.zeros_like(block.q_bias), block.v_bias])
        values = torch.nn.functional.linear(x, block.qkv.weight, bias).chunk(3, dim=-1)[2]
    else:
        values = block.v_proj(x)
    values = values.unflatten(-1, (attention.shape[1], -1)).transpose(1, 2)  # (B, heads, N, d)
    mixed = (attention @ values).transpose(1, 2).flatten(2)
    mixed = block.norm(mixed) if getattr(block, 'norm', None) is not None else mixed
    torch.testing.assert_close(block.proj(mixed), recorded['output'][:, rows], atol=1e-5, rtol=1e-4)


def test_padding_is_not_attended_to():
    vit = ViT('vit_tiny_patch16_224', timm_args=dict(depth=1)).eval()
    valid = torch.ones(1, 32, 48, dtype=torch.bool)
    valid[:, :, 16:] = False
    _, attention = attention_rows(vit, vit.embed(torch.randn(1, 3, 32, 48), valid), 0, [0])
    assert attention[0, :, 0, [2, 3, 5, 6]].max() == 0 and attention[0, :, 0, [0, 1, 4]].min() > 0


def test_what_cannot_be_watched_is_an_error(monkeypatch):
    vit = ViT('vit_tiny_patch16_224', timm_args=dict(depth=1)).eval()
    vit.model.blocks[0].attn.fused_attn = False
    with pytest.raises(ConfigError, match='or not by scaled_dot'):
        attention_rows(vit, vit.embed(torch.randn(1, 3, 32, 32)), 0, [0])
