"""The deformable attention layer against transformers' at equal weights."""

import math

import pytest
import torch
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention as TheirAttention,
)

from vitdense.layers.deform_attention import DeformableAttention

GRIDS = [(7, 9), (4, 5), (2, 3)]
CELLS = sum(height * width for height, width in GRIDS)


def layer_and_peer(num_points=3):
    config = DeformableDetrConfig(d_model=32, num_feature_levels=3, disable_custom_kernels=True)
    peer = TheirAttention(config, num_heads=4, n_points=num_points)
    for weight in peer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    layer = DeformableAttention(32, num_heads=4, num_levels=3, num_points=num_points)
    layer.load_state_dict(peer.state_dict())  # the names of published weights
    return layer, peer


def random_inputs(coordinates=2):
    return torch.randn(2, 11, 32), torch.rand(2, 11, 3, coordinates), torch.randn(2, CELLS, 32)


@pytest.mark.parametrize('coordinates', [2, 4])
@pytest.mark.parametrize('padded', [False, True])
def test_equals_transformers(coordinates, padded):
    layer, peer = layer_and_peer()
    queries, references, values = random_inputs(coordinates)
    valid = torch.rand(2, CELLS) > 0.3 if padded else None
    shapes = torch.tensor(GRIDS)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), shapes.prod(1).cumsum(0)[:-1]])
    theirs, _ = peer(
        queries,
        attention_mask=valid,
        encoder_hidden_states=values,
        reference_points=references,
        spatial_shapes=shapes,
        spatial_shapes_list=GRIDS,
        level_start_index=starts,
    )
    ours = layer(queries, references, values, GRIDS, valid)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    for (name, own), their in zip(layer.named_parameters(), peer.parameters(), strict=True):
        assert (own.grad - their.grad).abs().max() <= 1e-4 * their.grad.abs().max(), name


def test_starts_as_the_paper_says():
    layer = DeformableAttention(64, num_heads=8, num_levels=3, num_points=4)
    offsets = layer.sampling_offsets(torch.randn(5, 64)).view(5, 8, 3, 4, 2)
    assert torch.equal(offsets, offsets[:1, :, :1].expand_as(offsets))  # the same for every query and level
    straight = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    diagonal = torch.tensor([[-1.0, 1.0], [-2.0, 2.0], [-3.0, 3.0], [-4.0, 4.0]])
    torch.testing.assert_close(offsets[0, 0, 0], straight)
    torch.testing.assert_close(offsets[0, 3, 0], diagonal)
    assert layer.attention_weights(torch.randn(5, 64)).abs().max() == 0
    for projection in (layer.value_proj, layer.output_proj):
        assert projection.bias.abs().max() == 0
        assert projection.weight.abs().max() <= math.sqrt(6 / 128)


def test_what_lies_in_the_padding_has_no_say():
    layer, _ = layer_and_peer()
    queries, references, values = random_inputs()
    valid = torch.rand(2, CELLS) > 0.3
    other = torch.where(valid[..., None], values, 1e4)
    assert torch.equal(
        layer(queries, references, values, GRIDS, valid), layer(queries, references, other, GRIDS, valid)
    )
    silent = layer(queries, references, values, GRIDS, torch.zeros_like(valid))
    torch.testing.assert_close(silent, layer.output_proj.bias.expand_as(silent))


def test_autocast_keeps_places_exact():
    """Under bfloat16 the output differs by the rounding of values and weights, not by misplaced samples."""
    layer, _ = layer_and_peer()
    queries, references, values = random_inputs()
    torch.nn.init.zeros_(layer.sampling_offsets.weight)
    torch.nn.init.zeros_(layer.attention_weights.weight)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = layer(queries, references, values, GRIDS)
    exact = layer(queries, references, values, GRIDS)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).abs().max() <= 0.02 * exact.abs().max()
    rounded.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in layer.parameters())


def test_value_ratio_narrows_what_is_read():
    layer = DeformableAttention(64, num_heads=4, num_levels=3, value_ratio=0.5)
    assert layer.value_proj.weight.shape == (32, 64) and layer.output_proj.weight.shape == (64, 32)
    assert layer(torch.randn(1, 2, 64), torch.rand(1, 2, 3, 2), torch.randn(1, CELLS, 64), GRIDS).shape == (1, 2, 64)
    with pytest.raises(ValueError, match='do not divide among 4 heads'):
        DeformableAttention(60, num_heads=4, value_ratio=0.3)


def test_misfits_are_refused():
    layer, _ = layer_and_peer()
    queries, references, values = random_inputs()
    with pytest.raises(ValueError, match='2 grids for a layer of 3 levels'):
        layer(queries, references, values, GRIDS[:2])
    with pytest.raises(ValueError, match=r'points \(2 numbers\) or boxes'):
        layer(queries, torch.rand(2, 11, 3, 3), values, GRIDS)
