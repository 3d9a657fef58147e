"""Resampling matrices against torch, and a convolution that commutes with a resize."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vitdense.ops.padding import resize, zero_padding
from vitdense.ops.resample import (
    apply_separable,
    bilinear_weights,
    conv3x3_of_resized,
    corner_weights,
    pooling_weights,
    restride,
)


@pytest.mark.parametrize(('num_in', 'num_out'), [(4, 8), (4, 16), (5, 13), (7, 7), (1, 6), (9, 4)])
def test_bilinear_weights_are_those_of_interpolate(num_in, num_out):
    whole = {'used_out': torch.tensor([num_out]), 'used_in': torch.tensor([num_in])}
    weights = bilinear_weights(num_out, num_in, ratio=num_in / num_out, **whole)
    wanted = functional.interpolate(torch.eye(num_in)[None], size=num_out, mode='linear')[0].T
    torch.testing.assert_close(weights[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(('num_in', 'num_out'), [(4, 8), (7, 14), (1, 2), (5, 13), (3, 1)])
def test_corner_weights_are_those_of_interpolate(num_in, num_out):
    weights = corner_weights(num_out, num_in, used_out=torch.tensor([num_out]), used_in=torch.tensor([num_in]))
    wanted = functional.interpolate(torch.eye(num_in)[None], size=num_out, mode='linear', align_corners=True)[0].T
    torch.testing.assert_close(weights[0], wanted, atol=1e-6, rtol=0)


def test_cells_keep_their_places_where_a_stride_does_not_divide_the_image():
    """7 cells of 16 pixels are 3.5 cells of 32: each is the mean of the cells it covers, the last covers one."""
    x = torch.arange(7.0)[None, None, None].expand(1, 1, 7, 7)
    torch.testing.assert_close(restride(x, (4, 4), 2.0)[0, 0, 1], torch.tensor([0.5, 2.5, 4.5, 6.0]))
    assert restride(x, (7, 7), 1.0) is x
    even = torch.randn(2, 3, 6, 4)
    wanted = functional.interpolate(even, scale_factor=4, mode='bilinear')
    torch.testing.assert_close(restride(even, (24, 16), 0.25), wanted, atol=1e-6, rtol=1e-5)


def test_cells_of_a_padded_image_are_those_of_the_image_alone():
    x = torch.randn(2, 3, 6, 5)
    before, after = torch.tensor([[5, 3], [6, 5]]), torch.tensor([[9, 6], [11, 9]])
    got = restride(x, (11, 9), 14 / 25, before, after)
    torch.testing.assert_close(got[:1, :, :9, :6], restride(x[:1, :, :5, :3], (9, 6), 14 / 25))
    assert got[0, :, 9:].eq(0).all() and got[0, :, :, 6:].eq(0).all()


@pytest.mark.parametrize('scale', [1, 2, 3, 6])
def test_pooling_counts_only_the_cells_of_each_image(scale):
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
