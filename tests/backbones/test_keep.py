"""Keeping some patches: their outputs are those of a pass in which the others are masked."""

import pytest
import torch

from vitdense.backbones.vit import ViT

FAMILIES = {
    'vit_tiny_patch16_224': {'depth': 2},
    'vit_base_patch16_siglip_224': {'depth': 2, 'embed_dim': 192, 'num_heads': 3},  # no prefix
    'vit_small_patch14_reg4_dinov2': {'depth': 2},
    'vit_small_patch16_dinov3': {'depth': 2},  # rotates
    'eva02_tiny_patch14_224': {'depth': 2},
    'vit_small_patch16_rope_mixed_224': {'depth': 2},  # a rotation of its own for each block
}


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('name', FAMILIES)
@torch.no_grad()
def test_kept_patches_have_the_outputs_of_a_pass_with_the_others_masked(name, padded):
    vit = ViT(name, timm_args=FAMILIES[name]).eval()
    for parameter in vit.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    imgs = torch.randn(2, 3, 3 * vit.patch_size, 4 * vit.patch_size)
    valid = torch.ones(2, *imgs.shape[-2:], dtype=torch.bool)
    valid[1, :, -vit.patch_size :] = not padded
    tokens = vit.insert(vit.embed(imgs, valid), torch.randn(2, 2, vit.embed_dim))
    lead = tokens.x.shape[1] - 12  # what stands before the patches
    rows = torch.tensor([[4, 0, 9], [10, 1, 2]])  # in any order
    index = torch.cat([torch.arange(lead).expand(2, -1), rows + lead], dim=1)
    see = torch.zeros(2, 1, 1, tokens.x.shape[1], dtype=torch.bool).scatter_(-1, index[:, None, None], True)

    kept = vit.norm(vit.run(vit.keep(tokens, rows)))
    kept_pass = vit.norm(vit.run(tokens, attn_mask=see))
    assert kept.x.shape[1] == lead + 3
    expected = torch.take_along_dim(kept_pass.x, index[..., None], dim=1)
    torch.testing.assert_close(kept.x, expected, atol=1e-5, rtol=1e-5)
