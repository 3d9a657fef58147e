"""Levels of a detector: norms and cell centres that padding does not change."""

import math

import pytest
import torch
from torch import nn

from vitdense.heads.detr.levels import LevelProjection, MaskedGroupNorm
from vitdense.heads.detr.position import rows_first, sine_boxes, sine_positions
from vitdense.types import Features

EXTENTS = torch.tensor([[5, 7], [2, 3], [1, 7]])


def test_a_masked_group_norm_is_that_of_each_image_alone():
    norm, alone = MaskedGroupNorm(12, num_groups=4), nn.GroupNorm(4, 12)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    alone.load_state_dict(norm.state_dict())
    x = torch.randn(3, 12, 5, 7) + 3
    got = norm(x, EXTENTS)  # padding holds noise
    for row, (height, width) in enumerate(EXTENTS.tolist()):
        wanted = alone(x[row : row + 1, :, :height, :width])
        torch.testing.assert_close(got[row : row + 1, :, :height, :width], wanted, atol=1e-5, rtol=1e-5)
        assert not got[row, :, height:].any() and not got[row, :, :, width:].any()
    torch.testing.assert_close(norm(x), alone(x))


@pytest.mark.parametrize('offset', [0.0, -0.5])
def test_sine_positions_count_the_cells_of_the_image(offset):
    x = torch.zeros(3, 1, 5, 7)
    batched = sine_positions(x, 8, EXTENTS, offset=offset).unflatten(1, (5, 7))
    for row, (height, width) in enumerate(EXTENTS.tolist()):
        single = sine_positions(x[:1, :, :height, :width], 8, offset=offset).unflatten(1, (height, width))
        torch.testing.assert_close(batched[row, :height, :width], single[0])
    angle = 2 * math.pi * (2 + 1 + offset) / 5  # row 2 of 5, at the highest frequency
    assert batched[0, 2, 0, :2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-4)


def test_sine_boxes_encode_every_number_alike():
    boxes = torch.tensor([0.25, 0.5, 0.125, 0.75])
    encoded = sine_boxes(rows_first(boxes), 2)
    angles = [2 * math.pi * share for share in (0.5, 0.25, 0.125, 0.75)]
    wanted = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
    assert encoded.tolist() == pytest.approx(wanted, abs=1e-6)


def test_levels_know_their_cells():
    project = LevelProjection((6, 6), (8, 16), 32, 4)
    valid = torch.zeros(2, 48, 64, dtype=torch.bool)
    valid[0], valid[1, :16, :40] = True, True
    maps = (torch.randn(2, 6, 6, 8), torch.randn(2, 6, 3, 4))
    levels = project(Features(maps=maps, valid=valid, input_size=(48, 64)))
    assert project.strides == (8, 16, 32, 64)
    assert levels.grids == [(6, 8), (3, 4), (2, 2), (1, 1)]
    assert levels.tokens.shape == (2, 48 + 12 + 4 + 1, 32)
    assert levels.valid.sum(1).tolist() == [65, 2 * 5 + 1 * 3 + 1 * 2 + 1]
    wanted = torch.tensor([[5 / 8, 2 / 6], [3 / 4, 1 / 3], [1, 1 / 2], [1, 1]])  # of columns, of rows
    torch.testing.assert_close(levels.ratios()[1], wanted)
    assert levels.centers()[1, 0].tolist() == pytest.approx([0.5 / 5, 0.5 / 2])
    assert levels.centers()[0, 48 + 12 :].tolist() == [
        [0.25, 0.25],
        [0.75, 0.25],
        [0.25, 0.75],
        [0.75, 0.75],
        [0.5, 0.5],
    ]
