"""Separable resampling (bilinear resize, pooling) by one matrix per axis.

A resize or a pooling along one axis is a matrix (out, in). In this form it uses each image's own size
inside a padded input without a loop over the batch or a device synchronisation, and commutes with 1x1 convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.ops.padding import resize, whole_map, zero_padding


def bilinear_weights(num_out: int, num_in: int, *, used_out: Tensor, used_in: Tensor, ratio: Tensor | float) -> Tensor:
    """Return (B, num_out, num_in) weights of linear interpolation with `align_corners=False`.

    Of the `num_in` cells the first `used_in` (B,) are image, and the last of them is repeated beyond; of the
    `num_out` results the first `used_out` (B,) are wanted, the others are zero. `ratio` is input cells per output
    cell.
    """
    out = torch.arange(num_out, device=used_out.device)
    return _linear_weights((out + 0.5) * ratio - 0.5, num_in, used_out=used_out, used_in=used_in)


def corner_weights(num_out: int, num_in: int, *, used_out: Tensor, used_in: Tensor) -> Tensor:
    """Return (B, num_out, num_in) weights of linear interpolation with `align_corners=True`.

    The first and last of the `used_in` (B,) cells of an image lie on the first and last of its `used_out` (B,)
    results; results behind them are zero.
    """
    ratio = (used_in - 1) / (used_out - 1).clamp(min=1)
    out = torch.arange(num_out, device=used_out.device)
    return _linear_weights(out * ratio[:, None], num_in, used_out=used_out, used_in=used_in)


def _linear_weights(source: Tensor, num_in: int, *, used_out: Tensor, used_in: Tensor) -> Tensor:
    """Return the weights (B, num_out, num_in) of all cells at positions `source` (num_out,) or (B, num_out)."""
    source = torch.minimum(source.clamp(min=0), used_in[:, None] - 1.0)  # (B, num_out)
    distance = (source[:, :, None] - torch.arange(num_in, device=used_out.device)).abs()
    wanted = torch.arange(source.shape[1], device=used_out.device) < used_out[:, None]
    return (1 - distance).clamp(min=0) * wanted[:, :, None]


def filter_weights(num_out: int, num_in: int, *, like: Tensor, cubic: bool = False, antialias: bool = True) -> Tensor:
    """Return (num_out, num_in) weights of torch's antialiased linear or cubic resize, which is Pillow's (a = -0.5).

    Lengths may be symbols of an export. The weights have the device and dtype of `like`.
    """
    ratio = torch.full((), num_in, device=like.device, dtype=torch.float32) / num_out
    out = torch.arange(num_out, device=like.device, dtype=torch.float32)
    cells = torch.arange(num_in, device=like.device, dtype=torch.float32)
    distance = (out[:, None] + 0.5) * ratio - (cells + 0.5)
    distance = (distance / ratio.clamp(min=1) if antialias else distance).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    values = torch.where(distance < 1, near, far * (distance < 2)) if cubic else (1 - distance).clamp(min=0)
    return (values / values.sum(1, keepdim=True)).to(like.dtype)


def restride(
    x: Tensor, size: tuple[int, int], ratio: float, extents: Tensor | None = None, extents_out: Tensor | None = None
) -> Tensor:
    """Return `x` (B, C, h, w) bilinearly resized to cells that are `ratio` of its cells wide, `size` (H, W) of them.

    Where `size` is `h / ratio`, an ordinary resize. Where a stride does not divide the image, cells keep their places
    in pixels (a resize to a `size` rounded up would stretch them), and its last cell is repeated beyond its end.
    `extents` and `extents_out` (B, 2) are the cells of each image before and after; results outside are zero.
    """
    if ratio == 1 and extents is extents_out is None:
        return x
    used_in = whole_map(x) if extents is None else extents
    used_out = torch.stack([torch.full_like(used_in[:, 0], length) for length in size], dim=1)
    used_out = used_out if extents_out is None else extents_out
    rows, columns = (
        bilinear_weights(
            size[axis], x.shape[2 + axis], used_out=used_out[:, axis], used_in=used_in[:, axis], ratio=ratio
        )
        for axis in (0, 1)
    )
    return apply_separable(rows, x, columns)


def pooling_weights(num_bins: int, num_in: int, *, used_in: Tensor) -> Tensor:
    """Return (B, num_bins, num_in) weights that average the first `used_in` (B,) cells into bins.

    Bins are those of adaptive pooling: bin i covers [floor(i n / s), ceil((i + 1) n / s)).
    """
    bins = torch.arange(num_bins, device=used_in.device)
    starts = bins * used_in[:, None] // num_bins  # (B, num_bins)
    stops = ((bins + 1) * used_in[:, None] + num_bins - 1) // num_bins
    cells = torch.arange(num_in, device=used_in.device)
    covered = (cells >= starts[:, :, None]) & (cells < stops[:, :, None])
    return covered / (stops - starts)[:, :, None]


def apply_separable(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """Return `rows` (B, H, h) times `x` (B, C, h, w) times the transpose of `columns` (B, W, w): (B, C, H, W)."""
    return rows[:, None].to(x.dtype) @ x @ columns[:, None].to(x.dtype).mT


def conv3x3_of_resized(
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    extents: Tensor | None = None,
    extents_out: Tensor | None = None,
) -> Tensor:
    """Return the 3x3 convolution (padding 1, no bias) of `x` (B, C, h, w) bilinearly resized to `size` (H, W).

    Equal to `conv2d(zero_padding(resize(x, size, extents), extents_out), weight, padding=1)` up to rounding, with the
    products over channels made on the small grid: a 3x3 convolution is a sum over its nine taps of shifted 1x1
    convolutions, a 1x1 convolution changes places with a resize, and shift and resize along one axis are one matrix.
    For an `x` of half the size that is 3.9 times fewer products, of a quarter 15 times. `weight` is (O, C, 3, 3);
    the result is (B, O, H, W), channels last in memory.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return functional.conv2d(zero_padding(resize(x, size, extents), extents_out), weight, padding=1)
    (batch, channels, height, width), (num_out, *_) = x.shape, weight.shape
    shifts_down = _shifted_weights(size[0], x, 2, extents, extents_out)  # (B or 1, H, 3, h)
    shifts_right = _shifted_weights(size[1], x, 3, extents, extents_out).transpose(2, 3)  # (B or 1, W, w, 3)
    cells = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    # two plain copies (first dense, then a 2-d transpose) are four times faster than one of the strided tensor
    taps = weight.to(x.dtype).flatten(1).contiguous().T.contiguous().view(channels, 3, 3 * num_out)
    strips = []
    for row in range(3):
        products = (cells @ taps[:, row]).view(
            batch, height, width * 3, num_out
        )  # one 1x1 convolution for each column tap
        strips.append(shifts_right.flatten(2)[:, None].to(products.dtype) @ products)  # (B, h, W, O)
    stacked = torch.stack(strips, dim=1).view(batch, 3 * height, size[1] * num_out)
    result = shifts_down.flatten(2).to(stacked.dtype) @ stacked  # (B, H, W * O)
    return result.view(batch, *size, num_out).permute(0, 3, 1, 2)


def _shifted_weights(num_out: int, x: Tensor, dim: int, extents: Tensor | None, extents_out: Tensor | None) -> Tensor:
    """Return (B or 1, num_out, 3, num_in): what result cell r + tap - 1 takes from each input cell, zero outside."""
    num_in = x.shape[dim]
    used_in = whole_map(x)[:, dim - 2] if extents is None else extents[:, dim - 2]
    used_out = torch.full((1,), num_out, device=x.device) if extents_out is None else extents_out[:, dim - 2]
    weights = bilinear_weights(num_out, num_in, used_out=used_out, used_in=used_in, ratio=num_in / num_out)
    padded = functional.pad(weights, (0, 0, 1, 1))  # the convolution's own border of zeros
    return torch.stack([padded[:, tap : tap + num_out] for tap in range(3)], dim=2)
