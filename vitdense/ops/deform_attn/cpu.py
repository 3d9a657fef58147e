"""Deformable attention by `torch.embedding_bag`, forward and backward, for CPUs; no compiled extension is needed.

`value` is taken as an embedding table with one row of C channels for every (cell, head). The output of a (query, head)
is one bag: the weighted sum of levels * points * 4 rows, the corners around each sampling point. The bilinear weight of
corner i at position x is max(0, 1 - |x - i|) along each axis. The first corner is clamped into the map, so that both
corners always exist; outside the map the weights are zero without a mask.

Backward: the gradient of a row's weight is the dot product of the row and `grad_output`; the gradient of a point
follows from the slopes of the bilinear weights; the gradient of `value` sums, for every row, over the bags that contain
it, which are found by a sort. Only the arguments are saved for the backward pass. Work is cut into chunks that fit the
cache, and all sums have a fixed order: the same arguments give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_SAMPLES = 1 << 15  # sampling points handled together, per thread: their rows and weights take 1 MB
CHUNK_FLOATS = 1 << 18  # floats of rows gathered together, per thread
MAX_ROWS = 1 << 24  # of a table: float32 counts cells exactly up to here
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (y, x)


class Pyramid(NamedTuple):
    """Constants of the levels, for the T = heads * levels * points samples of one query, heads first."""

    heads: int
    bounds: tuple[tuple[int, int], ...]  # rows of each level: start, stop
    steps: tuple[tuple[int, ...], ...]  # for each of CORNERS, for each level: rows from the first corner to this one
    step: Tensor  # (4, T) int32, the same for every point
    start: Tensor  # (T,) int32 row of the first cell of the level and head
    size: Tensor  # (2, 1, T) width and height of the level, floating
    last: Tensor  # (2, 1, T) the largest first corner: size - 2, never negative
    paired: Tensor | None  # (2, 1, T) zero where a level is one cell wide, so has no second corner; None: nowhere


class SamplingPoints(NamedTuple):
    """The sampling points of n queries: corners, bilinear weights and their slopes; axes are x and y."""

    first: Tensor  # (n, T) int32 row of the first corner
    bilinear_weights: Tensor  # (2 corners, 2 axes, n, T) weight of a corner along an axis
    slopes: Tensor | None  # same shape: its derivative, per cell; from the right at kinks, as in `grid_sample`


def attend(value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Return (B, Q, heads * C) as `ops.deform_attn.deform_attn` does, for tensors of one type, float32 or float64."""
    batch, queries, heads = locations.shape[:3]
    tables = value.flatten(1, 2).contiguous()  # (B, S, heads, C) -> (B, S*heads, C)
    sums = (value.new_empty if locations.numel() else value.new_zeros)(batch, queries * heads, value.shape[-1])
    pyramid = pyramid_of(tuple(grids), heads, locations.shape[4], value.dtype, value.device)
    for image in range(batch):
        for picked, outputs in _chunks(locations):
            samples = locate(pyramid, locations[image, picked])
            rows = corner_rows(pyramid, samples)
            shares = torch.empty(rows.shape, dtype=value.dtype, device=value.device)
            share_corners(samples, weights[image, picked], out=shares.movedim(2, 0))
            sums[image, outputs] = _row_sums(tables[image], rows, shares)
    return sums.view(batch, queries, heads * value.shape[-1])


def attend_backward(
    grad_output: Tensor, value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `value`, `locations` and `weights`; `grad_output` is (B, Q, heads * C)."""
    batch, queries, heads = locations.shape[:3]
    tables = value.flatten(1, 2).contiguous()  # (B, S, heads, C) -> (B, S*heads, C)
    grad_output = grad_output.contiguous().view(batch, queries * heads, value.shape[-1])
    grad_tables, grad_locations, grad_weights = map(torch.empty_like, (tables, locations, weights))
    grad_tables.zero_()
    pyramid = pyramid_of(tuple(grids), heads, locations.shape[4], value.dtype, value.device)
    for image in range(batch if locations.numel() else 0):
        first = torch.empty(weights.shape[1:], dtype=torch.int32, device=value.device)
        shares = weights.new_empty(4, *weights.shape[1:])
        for picked, outputs in _chunks(locations):
            samples = locate(pyramid, locations[image, picked], slopes=True)
            grad_shares = _row_products(tables[image], corner_rows(pyramid, samples), grad_output[image, outputs])
            location_grads, to_weights = locations_backward(pyramid, samples, grad_shares)
            torch.mul(location_grads, weights[image, picked].unsqueeze(-1), out=grad_locations[image, picked])
            grad_weights[image, picked] = to_weights
            first[picked] = samples.first.view_as(first[picked])
            share_corners(samples, weights[image, picked], out=shares[:, picked].flatten(3))
        table_backward(pyramid, first.flatten(2), shares.flatten(3), grad_output[image], out=grad_tables[image])
    return grad_tables.view(value.shape), grad_locations, grad_weights


@lru_cache(maxsize=64)
def pyramid_of(
    grids: tuple[tuple[int, int], ...], heads: int, points: int, dtype: torch.dtype, device: torch.device
) -> Pyramid:
    """Return the constants of `grids` [(h, w), ...]. They are cached, so they are no inference tensors."""
    steps = [[heads * (w * y * (h > 1) + x * (w > 1)) for h, w in grids] for y, x in CORNERS]
    bounds, stop = [], 0
    for height, width in grids:
        bounds.append((stop, stop + heads * height * width))
        stop = bounds[-1][1]
    with torch.inference_mode(False):
        step, start = torch.tensor(steps, dtype=torch.int32), torch.tensor(bounds, dtype=torch.int32)[:, 0]
        size = torch.tensor([(width, height) for height, width in grids], dtype=dtype).t()  # (2, levels)
        step, start, size = (
            per_level[..., None, :, None].expand(*per_level.shape[:-1], heads, -1, points)
            for per_level in (step, start, size)
        )  # (..., levels) -> (..., heads, levels, points)
        start = start + torch.arange(heads, dtype=torch.int32)[:, None, None]
        size = size.flatten(1)[:, None]
        paired = (size > 1).to(dtype)
        return Pyramid(
            heads,
            tuple(bounds),
            tuple(map(tuple, steps)),
            step.flatten(1).to(device),
            start.flatten().to(device),
            size.contiguous().to(device),
            (size - 2).clamp(min=0).to(device),
            None if paired.all() else paired.to(device),
        )


def locate(pyramid: Pyramid, locations: Tensor, *, slopes: bool = False) -> SamplingPoints:
    """Find the corners around `locations` (n, heads, levels, points, 2), which are in [0, 1] of the map."""
    offsets = locations.new_empty(2, 2, len(locations), pyramid.start.numel())  # from both corners, in cells
    torch.mul(locations.flatten(1, 3).movedim(-1, 0), pyramid.size, out=offsets[0]).sub_(0.5)  # 0 is a cell centre
    corner = offsets[0].floor().clamp_(min=0)
    torch.minimum(corner, pyramid.last, out=corner)
    first = torch.addcmul(corner[0], corner[1], pyramid.size[0]).to(torch.int32)
    first.clamp_(min=0)  # NaN gives no valid cell; the bilinear weights stay NaN
    torch.sub(offsets[0].sub_(corner), 1, out=offsets[1])
    derivatives = _slopes_of(pyramid, offsets) if slopes else None
    bilinear_weights = offsets.abs_().neg_().add_(1).clamp_(min=0)
    if pyramid.paired is not None:
        bilinear_weights[1].mul_(pyramid.paired)
    return SamplingPoints(first.mul_(pyramid.heads).add_(pyramid.start), bilinear_weights, derivatives)


def _slopes_of(pyramid: Pyramid, offsets: Tensor) -> Tensor:
    cell = offsets[0].floor()
    before, here, after = ((cell == number).to(cell.dtype) for number in (-1, 0, 1))
    slopes = torch.stack([before - here, here - after])
    if pyramid.paired is not None:
        slopes[1].mul_(pyramid.paired)
    return slopes


def corner_rows(pyramid: Pyramid, samples: SamplingPoints) -> Tensor:
    """Return (n, heads, 4, K) int32: the table rows of each bag, corner by corner; K = levels * points."""
    num_queries, num_samples = samples.first.shape
    rows = samples.first.new_empty(num_queries, pyramid.heads, 4, num_samples // pyramid.heads)
    for corner, step in enumerate(pyramid.step):
        rows[:, :, corner] = (samples.first + step).view(num_queries, pyramid.heads, -1)
    return rows


def share_corners(samples: SamplingPoints, weights: Tensor, out: Tensor) -> None:
    """Write to `out` (4, n, heads, K) the bilinear weight of each corner times the attention weight of its point."""
    x, y = samples.bilinear_weights.unbind(1)  # each (2 corners, n, T)
    y = y * weights.flatten(1)
    for share, corner in zip(out, CORNERS, strict=True):
        torch.mul(y[corner[0]].view(share.shape), x[corner[1]].view(share.shape), out=share)


def locations_backward(pyramid: Pyramid, samples: SamplingPoints, grad_shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of locations, for attention weights of one, and of the attention weights.

    `grad_shares` (n, heads, 4, K) are the gradients of the row weights; the results are (n, heads, levels, points, 2)
    and (n, heads, levels, points).
    """
    num_queries, heads, _, num_samples = grad_shares.shape
    weight_x, weight_y = samples.bilinear_weights.view(2, 2, num_queries, heads, num_samples).unbind(1)
    slope_x, slope_y = samples.slopes.view(2, 2, num_queries, heads, num_samples).unbind(1)
    upper, lower = grad_shares.unflatten(2, (2, 2)).unbind(2)  # (n, heads, 2, K)
    level = [pair[:, :, 0] * weight_x[0] + pair[:, :, 1] * weight_x[1] for pair in (upper, lower)]
    slant = [pair[:, :, 0] * slope_x[0] + pair[:, :, 1] * slope_x[1] for pair in (upper, lower)]
    size_x, size_y = pyramid.size.view(2, heads, num_samples)
    along_x = (slant[0] * weight_y[0] + slant[1] * weight_y[1]) * size_x
    along_y = (level[0] * slope_y[0] + level[1] * slope_y[1]) * size_y
    sums = level[0] * weight_y[0] + level[1] * weight_y[1]
    shape = (len(pyramid.bounds), -1)
    return torch.stack([along_x, along_y], dim=-1).unflatten(2, shape), sums.unflatten(2, shape)


def table_backward(pyramid: Pyramid, first: Tensor, shares: Tensor, grad_output: Tensor, out: Tensor) -> None:
    """Add the gradient of the table to `out` (S * heads, C).

    `first` (Q, heads, K) are first corners, `shares` the row weights (4, Q, heads, K), `grad_output` is (Q * heads, C).
    With many points only the first corners are sorted, and the sums of each corner are shifted to its rows; with few,
    passes over the table take most of the time, so all corners are sorted together.
    """
    num_samples, num_rows = first.numel(), len(out)
    if num_samples < 2 * num_rows:
        rows = first.flatten(1) + pyramid.step[:, None]  # (4, Q, T)
        order, starts = _sort_by_row(rows.flatten(), num_rows)
        bag_index = _bag_index(order.remainder(num_samples), first.shape[-1])
        out += _weigh(grad_output, bag_index, starts, shares.flatten()[order])
        return
    order, starts = _sort_by_row(first.flatten(), num_rows)
    shares, bag_index = shares.flatten(1).index_select(1, order), _bag_index(order, first.shape[-1])
    for share, steps in zip(shares, pyramid.steps, strict=True):
        sums = _weigh(grad_output, bag_index, starts, share)
        for (start, stop), step in zip(pyramid.bounds, steps, strict=True):
            out[start + step : stop] += sums[start : stop - step]


def _chunks(locations: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the slice of the queries of a chunk, and that of their outputs (query, head)."""
    queries, heads = locations.shape[1:3]
    num_samples = queries * heads * locations.shape[3] * locations.shape[4]
    num_chunks = -(-num_samples // (CHUNK_SAMPLES * torch.get_num_threads()))
    size = max(-(-queries // max(num_chunks, 1)), 1)
    for start in range(0, queries if num_samples else 0, size):
        stop = min(start + size, queries)
        yield slice(start, stop), slice(start * heads, stop * heads)


def _weigh(table: Tensor, rows: Tensor, starts: Tensor, shares: Tensor | None) -> Tensor:
    """Return for each bag the sum of its `rows` of the table weighted by `shares`; a bag ends where the next starts."""
    return torch.embedding_bag(table, rows, starts, False, 0, False, shares)[0]


def _row_sums(table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """Return (n * heads, C) weighted sums of rows of `table` (S * heads, C); `rows`, `shares` (n, heads, 4, K)."""
    size = rows.shape[2] * rows.shape[3]
    starts = torch.arange(0, rows.numel(), size, dtype=torch.int32, device=rows.device)
    return _weigh(table, rows.view(-1), starts, shares.view(-1))


def _row_products(table: Tensor, rows: Tensor, grad_output: Tensor) -> Tensor:
    """Return (n, heads, 4, K): the dot product of each of `rows` with the `grad_output` (n * heads, C) of its bag."""
    grouped = rows.view(len(grad_output), -1)
    grad_shares = grad_output.new_empty(grouped.shape)
    size = max(CHUNK_FLOATS * torch.get_num_threads() // (grouped.shape[1] * table.shape[1]), 1)
    singles = torch.arange(size * grouped.shape[1], dtype=torch.int32, device=rows.device)
    for start in range(0, len(grouped), size):
        picked = grouped[start : start + size]
        # bags of one row each: faster than index_select
        cells = _weigh(table, picked.reshape(-1), singles[: picked.numel()], None).view(*picked.shape, -1)
        out = grad_shares[start : start + size].unsqueeze(1)
        torch.bmm(grad_output[start : start + size].unsqueeze(1), cells.transpose(1, 2), out=out)
    return grad_shares.view(rows.shape)


def _sort_by_row(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the order of `rows` (N,) by row, and where in it each row of the table starts, (num_rows,) int32."""
    counts = torch.bincount(rows, minlength=num_rows)
    return torch.sort(rows, stable=True).indices, (counts.cumsum(0) - counts).to(torch.int32)


def _bag_index(samples: Tensor, size: int) -> Tensor:
    return samples.to(torch.int32).div_(size, rounding_mode='floor')
