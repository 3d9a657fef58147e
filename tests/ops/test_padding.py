"""Padding: extents by hand, zeros, held edges, and a resize that does not read padding."""

import torch
from torch.nn import functional

from vitdense.ops.padding import (
    channels_last,
    hold_edges,
    image_sizes,
    map_extents,
    resize,
    whole_cells,
    zero_padding,
)


def rectangle(height: int, width: int, pixels: tuple[int, int]) -> torch.Tensor:
    valid = torch.zeros(pixels, dtype=torch.bool)
    valid[:height, :width] = True
    return valid


def test_extents_count_every_cell_that_holds_a_pixel():
    valid = torch.stack([rectangle(17, 28, (28, 56)), rectangle(28, 56, (28, 56))])
    assert image_sizes(valid).tolist() == [[17, 28], [28, 56]]
    assert map_extents(valid, 14, (2, 4)).tolist() == [[2, 2], [2, 4]]
    assert map_extents(valid, 3.5, (8, 16)).tolist() == [[5, 8], [8, 16]]
    assert map_extents(valid, 28, (1, 2)).tolist() == [[1, 1], [1, 2]]
    assert map_extents(None, 14, (2, 4)) is None


def test_whole_cells_grows_images_but_not_beyond_the_plane():
    valid = torch.stack([rectangle(17, 3, (28, 30)), rectangle(28, 30, (28, 30))])
    assert image_sizes(whole_cells(valid, 14)).tolist() == [[28, 14], [28, 30]]


def test_zero_padding_silences_even_nan():
    x = torch.full((1, 2, 3, 3), float('nan'))
    x[:, :, :2, :1] = 1.0
    assert zero_padding(x, torch.tensor([[2, 1]])).sum() == 4
    assert zero_padding(x, None) is x


def test_hold_edges_repeats_the_last_row_and_column():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert hold_edges(x, torch.tensor([[2, 2]]))[0, 0].tolist() == [[0, 1, 1], [3, 4, 4], [3, 4, 4]]


def test_a_resize_of_a_padded_map_equals_the_resize_of_the_image_alone():
    x = torch.randn(2, 3, 4, 6)
    extents = torch.tensor([[4, 6], [2, 3]])
    got = resize(x, (8, 12), extents)
    for row, (height, width) in enumerate(extents.tolist()):
        alone = functional.interpolate(x[row : row + 1, :, :height, :width], scale_factor=2, mode='bilinear')
        torch.testing.assert_close(got[row : row + 1, :, : 2 * height, : 2 * width], alone)


def test_channels_last_gives_unambiguous_strides_and_keeps_values():
    tokens = torch.randn(1, 1 + 4 * 6, 8)
    folded = tokens[:, 1:].transpose(1, 2).reshape(1, 8, 4, 6)
    x = channels_last(folded)
    assert x.stride() == (4 * 6 * 8, 1, 6 * 8, 8)
    assert x.data_ptr() == folded.data_ptr()  # nothing was copied
    torch.testing.assert_close(channels_last(folded.contiguous()), folded)
    conv = torch.nn.Conv2d(8, 8, 3, padding=1)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)
