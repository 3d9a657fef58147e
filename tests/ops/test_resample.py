"""Resampling matrices against torch, and a convolution that changes places with a resize."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vitdense.ops.padding import resize, zero_padding
from vitdense.ops.resample import apply_separable, bilinear_weights, conv3x3_of_resized, pooling_weights


@pytest.mark.parametrize(('num_in', 'num_out'), [(4, 8), (4, 16), (5, 13), (7, 7), (1, 6), (9, 4)])
def test_bilinear_weights_are_those_of_interpolate(num_in, num_out):
    whole = {'used_out': torch.tensor([num_out]), 'used_in': torch.tensor([num_in])}
    weights = bilinear_weights(num_out, num_in, ratio=num_in / num_out, **whole)
    wanted = functional.interpolate(torch.eye(num_in)[None], size=num_out, mode='linear')[0].T
    torch.testing.assert_close(weights[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize('scale', [1, 2, 3, 6])
def test_pooling_counts_only_the_cells_of_each_picture(scale):
    x = torch.randn(3, 4, 12, 10)
    extents = torch.tensor([[12, 10], [7, 5], [4, 2]])
    rows = pooling_weights(scale, 12, used_in=extents[:, 0])
    got = apply_separable(rows, x, pooling_weights(scale, 10, used_in=extents[:, 1]))
    for row, (height, width) in enumerate(extents.tolist()):
        wanted = functional.adaptive_avg_pool2d(x[row, :, :height, :width], scale)
        torch.testing.assert_close(got[row], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(('grid', 'size'), [((8, 6), (16, 12)), ((5, 7), (19, 28)), ((1, 3), (2, 6)), ((6, 6), (6, 6))])
@pytest.mark.parametrize('padded', [False, True])
def test_convolution_of_the_resized_map_and_its_gradients(grid, size, padded):
    x = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    extents = extents_out = None
    if padded:
        extents = torch.tensor([grid, (-(-grid[0] // 2), 2)])
        extents_out = torch.tensor([size, (-(-size[0] // 2), 2 * size[1] // grid[1])])
    wanted = functional.conv2d(zero_padding(resize(x, size, extents), extents_out), weight, padding=1)
    got = conv3x3_of_resized(x, weight, size, extents, extents_out)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)  # the weights of a resize are float32
    direction = torch.randn_like(wanted)
    for mine, reference in zip(
        torch.autograd.grad(got, (x, weight), direction),
        torch.autograd.grad(wanted, (x, weight), direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, atol=1e-4, rtol=1e-4)


def test_it_makes_few_products():
    x, weight = torch.randn(1, 8, 16, 16), torch.randn(8, 8, 3, 3)
    with FlopCounterMode(display=False) as counter:
        conv3x3_of_resized(x, weight, (64, 64))
    naive = 2 * 9 * 8 * 8 * 64 * 64
    over_channels = 2 * 9 * 8 * 8 * 16 * 16
    over_axes = 2 * 8 * (9 * 16 * 16 * 64 + 3 * 16 * 64 * 64)
    assert counter.get_total_flops() == over_channels + over_axes
    assert over_channels == naive / 16
