"""Padding of feature maps: the extent of each image, and the values outside it.

Images lie at the top left of the padded input. A cell that holds any pixel of the image belongs to it. `extents` is
(B, 2) int64, the (rows, columns) of cells that belong to each image; None means that every cell does. Three rules
keep a padded batch equal to its single images:

* a convolution reads zeros around the image: `zero_padding` before it;
* an interpolation reads the image's edge repeated: `hold_edges` before it;
* an average counts only the image's own cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def image_sizes(valid: Tensor) -> Tensor:
    """Return the (height, width) in pixels of each image, (B, 2) int64, from `valid` (B, H, W) bool."""
    return torch.stack([valid.any(2).sum(1), valid.any(1).sum(1)], dim=1)


def region_sizes(valid: Tensor | None, x: Tensor, input_size: Sequence[int], cell: int = 1) -> Tensor:
    """Return (B, 2) float32: the (height, width) in pixels of each image in whole cells of `cell` pixels.

    This is the region that boxes in [0, 1] measure, the same for an image alone and in a padded batch. `x` is any
    tensor of the batch; `input_size` (H, W) is the size of the network input, which is returned without `valid`.
    """
    if valid is not None:
        return image_sizes(whole_cells(valid, cell)).float()
    return torch.stack([torch.full((x.shape[0],), length, device=x.device) for length in input_size], dim=1).float()


def rectangles(extents: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, h, w) bool, True inside the top-left rectangle of each row of `extents` (B, 2)."""
    rows = torch.arange(size[0], device=extents.device) < extents[:, :1]  # (B, h)
    columns = torch.arange(size[1], device=extents.device) < extents[:, 1:]  # (B, w)
    return rows[:, :, None] & columns[:, None, :]


def whole_cells(valid: Tensor, cell: int) -> Tensor:
    """Return `valid` (B, H, W) with every image grown to whole cells of `cell` pixels, clipped to the padded input."""
    sizes = image_sizes(valid)
    return rectangles((sizes + cell - 1) // cell * cell, tuple(valid.shape[-2:]))


def map_extents(valid: Tensor | None, stride: float, size: tuple[int, int]) -> Tensor | None:
    """Return the extents of the images in a map of `size` (h, w) cells at `stride` pixels, or None without `valid`.

    `valid` is (B, H, W) bool in pixels of the padded input.
    """
    if valid is None:
        return None
    extents = torch.ceil(image_sizes(valid) / stride).long()
    return torch.stack([extents[:, axis].clamp(max=length) for axis, length in enumerate(size)], dim=1)


def extents_of(valid: Tensor | None, maps: Sequence[Tensor], strides: Sequence[float]) -> list[Tensor | None]:
    """Return the extents of the images in each of `maps`, which lie at `strides`; see `map_extents`."""
    return [map_extents(valid, stride, tuple(x.shape[-2:])) for x, stride in zip(maps, strides, strict=True)]


def whole_map(x: Tensor) -> Tensor:
    """Return the extents (1, 2) of images that fill `x` (B, C, h, w); made on its device, for sizes of any kind."""
    return torch.stack([torch.full((1,), length, device=x.device) for length in x.shape[-2:]], dim=1)


def zero_padding(x: Tensor, extents: Tensor | None) -> Tensor:
    """Return `x` (B, C, h, w) with zeros in every cell outside its image."""
    if extents is None:
        return x
    inside = rectangles(extents, tuple(x.shape[-2:]))[:, None]  # (B, 1, h, w)
    return x.masked_fill(~inside, 0.0)  # not a product: padding may hold NaN or inf


def hold_edges(x: Tensor, extents: Tensor | None) -> Tensor:
    """Return `x` (B, C, h, w) with every cell outside its image holding the nearest cell of the image."""
    if extents is None:
        return x
    batch, channels, height, width = x.shape
    rows, columns = (
        torch.minimum(torch.arange(length, device=x.device), extents[:, axis, None].clamp(min=1) - 1)
        for axis, length in enumerate((height, width))
    )  # (B, h), (B, w)
    x = x.gather(2, rows[:, None, :, None].expand(batch, channels, height, width))
    return x.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))


def resize(x: Tensor, size: tuple[int, int], extents: Tensor | None = None) -> Tensor:
    """Return `x` (B, C, h, w) bilinearly resized to `size` (H, W), edge to edge (`align_corners=False`).

    Cells near the end of an image are computed from that image alone. Cells of the result outside the images
    repeat its edge; zero them before a convolution.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return functional.interpolate(hold_edges(x, extents), size=size, mode='bilinear', align_corners=False)


def channels_last(x: Tensor) -> Tensor:
    """Return `x` (B, C, h, w) with channels last in memory, in strides that every kernel recognises.

    A ViT's tokens are channels last already and are not copied. But the strides of a batch of one are ambiguous: torch
    takes such a map for channels last, but the outputs of convolutions have the other layout, half as fast on a CPU
    (`contiguous(memory_format=torch.channels_last)` does not change them).
    """
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).flatten().view(batch, height, width, channels).permute(0, 3, 1, 2)
