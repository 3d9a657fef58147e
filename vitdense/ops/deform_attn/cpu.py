"""Deformable attention as weighted bags of rows: the fast way on a CPU, without a compiled extension.

Read `value` as a table with one row of C channels for every (cell, head). What a query and a head read is then a bag
of levels * points * 4 rows, the corners around each place, and `embedding_bag` gathers, weighs and sums a bag in one
pass. The share of corner i in a place x is the hat function max(0, 1 - |x - i|). The first corner is clamped into the
map, so that both corners always exist; beyond the edge the hats fall to zero by themselves, with no masks.

Backwards, the share of a row has the gradient row . pull (`pull` is the gradient of the answer), places follow from
the slopes of the hats, and `value` from the transposed bags: for every row the bags that read it, found by a sort.
Nothing but the arguments is kept between the two directions. Work is cut into chunks that stay in the cache, and all
sums have a fixed order: the same arguments give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_PLACES = 1 << 15  # places handled together, per thread: their rows and shares take 1 MB
CHUNK_FLOATS = 1 << 18  # floats of rows gathered together, per thread
MAX_ROWS = 1 << 24  # of a table: float32 counts cells exactly up to here
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (y, x)


class Pyramid(NamedTuple):
    """What the levels mean for the T = heads * levels * points places of one query, heads first."""

    heads: int
    bounds: tuple[tuple[int, int], ...]  # rows of each level: start, stop
    steps: tuple[tuple[int, ...], ...]  # for each of CORNERS, for each level: rows from the first corner to this one
    step: Tensor  # (4, T) int32, the same for every place
    start: Tensor  # (T,) int32 row of the first cell of the level and head
    size: Tensor  # (2, 1, T) width and height of the level, floating
    last: Tensor  # (2, 1, T) the largest first corner: size - 2, never negative
    paired: Tensor | None  # (2, 1, T) zero where a level is one cell wide, so has no second corner; None: nowhere


class Places(NamedTuple):
    """Where n queries read; axes are x and y."""

    first: Tensor  # (n, T) int32 row of the first corner
    hats: Tensor  # (2 corners, 2 axes, n, T) share of a corner along an axis
    slopes: Tensor | None  # same shape: its slope there, per cell; to the right where it jumps, as in `grid_sample`


def attend(value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Return (B, Q, heads * C) as `ops.deform_attn.deform_attn` does, for tensors of one type, float32 or float64."""
    batch, queries, heads = locations.shape[:3]
    tables = value.flatten(1, 2).contiguous()  # (B, S, heads, C) -> (B, S*heads, C)
    sums = (value.new_empty if locations.numel() else value.new_zeros)(batch, queries * heads, value.shape[-1])
    pyramid = pyramid_of(tuple(grids), heads, locations.shape[4], value.dtype, value.device)
    for image in range(batch):
        for picked, bags in _chunks(locations):
            places = locate(pyramid, locations[image, picked])
            rows = bag_rows(pyramid, places)
            shares = torch.empty(rows.shape, dtype=value.dtype, device=value.device)
            share_corners(places, weights[image, picked], out=shares.movedim(2, 0))
            sums[image, bags] = _sum_bags(tables[image], rows, shares)
    return sums.view(batch, queries, heads * value.shape[-1])


def attend_backward(
    pull: Tensor, value: Tensor, grids: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `value`, `locations` and `weights`; `pull` (B, Q, heads * C) is that of the answer."""
    batch, queries, heads = locations.shape[:3]
    tables = value.flatten(1, 2).contiguous()  # (B, S, heads, C) -> (B, S*heads, C)
    pull = pull.contiguous().view(batch, queries * heads, value.shape[-1])
    pulls = torch.zeros_like(tables), torch.empty_like(locations), torch.empty_like(weights)
    pyramid = pyramid_of(tuple(grids), heads, locations.shape[4], value.dtype, value.device)
    for image in range(batch if locations.numel() else 0):
        first = torch.empty(weights.shape[1:], dtype=torch.int32, device=value.device)
        shares = weights.new_empty(4, *weights.shape[1:])
        for picked, bags in _chunks(locations):
            places = locate(pyramid, locations[image, picked], slopes=True)
            gains = _dot_bags(tables[image], bag_rows(pyramid, places), pull[image, bags])
            to_places, to_weights = pull_places(pyramid, places, gains)
            torch.mul(to_places, weights[image, picked].unsqueeze(-1), out=pulls[1][image, picked])
            pulls[2][image, picked] = to_weights
            first[picked] = places.first.view_as(first[picked])
            share_corners(places, weights[image, picked], out=shares[:, picked].flatten(3))
        pull_rows(pyramid, first.flatten(2), shares.flatten(3), pull[image], out=pulls[0][image])
    return pulls[0].view(value.shape), pulls[1], pulls[2]


@lru_cache(maxsize=64)
def pyramid_of(
    grids: tuple[tuple[int, int], ...], heads: int, points: int, dtype: torch.dtype, device: torch.device
) -> Pyramid:
    """Return the constants of `grids` [(h, w), ...]. They outlive the call, so inference mode must not mark them."""
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


def locate(pyramid: Pyramid, locations: Tensor, *, slopes: bool = False) -> Places:
    """Find the corners around `locations` (n, heads, levels, points, 2), which are in [0, 1] of the map."""
    offsets = locations.new_empty(2, 2, len(locations), pyramid.start.numel())  # from both corners, in cells
    torch.mul(locations.flatten(1, 3).movedim(-1, 0), pyramid.size, out=offsets[0]).sub_(0.5)  # 0 is a cell centre
    corner = offsets[0].floor().clamp_(min=0)
    torch.minimum(corner, pyramid.last, out=corner)
    first = torch.addcmul(corner[0], corner[1], pyramid.size[0]).to(torch.int32)
    first.clamp_(min=0)  # what is not a number became no cell; it stays not a number in the hats
    torch.sub(offsets[0].sub_(corner), 1, out=offsets[1])
    rise = _slopes_of(pyramid, offsets) if slopes else None
    hats = offsets.abs_().neg_().add_(1).clamp_(min=0)
    if pyramid.paired is not None:
        hats[1].mul_(pyramid.paired)
    return Places(first.mul_(pyramid.heads).add_(pyramid.start), hats, rise)


def _slopes_of(pyramid: Pyramid, offsets: Tensor) -> Tensor:
    cell = offsets[0].floor()
    before, here, after = ((cell == number).to(cell.dtype) for number in (-1, 0, 1))
    slopes = torch.stack([before - here, here - after])
    if pyramid.paired is not None:
        slopes[1].mul_(pyramid.paired)
    return slopes


def bag_rows(pyramid: Pyramid, places: Places) -> Tensor:
    """Return (n, heads, 4, K) int32: the rows of each bag, corner by corner; K = levels * points."""
    num_queries, num_places = places.first.shape
    rows = places.first.new_empty(num_queries, pyramid.heads, 4, num_places // pyramid.heads)
    for corner, step in enumerate(pyramid.step):
        rows[:, :, corner] = (places.first + step).view(num_queries, pyramid.heads, -1)
    return rows


def share_corners(places: Places, weights: Tensor, out: Tensor) -> None:
    """Write to `out` (4, n, heads, K) what share each corner has, times the weight of its place."""
    x, y = places.hats.unbind(1)  # each (2 corners, n, T)
    y = y * weights.flatten(1)
    for share, corner in zip(out, CORNERS, strict=True):
        torch.mul(y[corner[0]].view(share.shape), x[corner[1]].view(share.shape), out=share)


def pull_places(pyramid: Pyramid, places: Places, gains: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of locations (for a weight of one) and weights, from those of the shares.

    `gains` (n, heads, 4, K); the answers are (n, heads, levels, points, 2) and (n, heads, levels, points).
    """
    num_queries, heads, _, num_places = gains.shape
    hat_x, hat_y = places.hats.view(2, 2, num_queries, heads, num_places).unbind(1)
    rise_x, rise_y = places.slopes.view(2, 2, num_queries, heads, num_places).unbind(1)
    upper, lower = gains.unflatten(2, (2, 2)).unbind(2)  # (n, heads, 2, K)
    level = [pair[:, :, 0] * hat_x[0] + pair[:, :, 1] * hat_x[1] for pair in (upper, lower)]
    slant = [pair[:, :, 0] * rise_x[0] + pair[:, :, 1] * rise_x[1] for pair in (upper, lower)]
    size_x, size_y = pyramid.size.view(2, heads, num_places)
    along_x = (slant[0] * hat_y[0] + slant[1] * hat_y[1]) * size_x
    along_y = (level[0] * rise_y[0] + level[1] * rise_y[1]) * size_y
    sums = level[0] * hat_y[0] + level[1] * hat_y[1]
    shape = (len(pyramid.bounds), -1)
    return torch.stack([along_x, along_y], dim=-1).unflatten(2, shape), sums.unflatten(2, shape)


def pull_rows(pyramid: Pyramid, first: Tensor, shares: Tensor, pull: Tensor, out: Tensor) -> None:
    """Add the gradient of the table to `out` (S * heads, C).

    `first` (Q, heads, K) are first corners, `shares` (4, Q, heads, K), `pull` (Q * heads, C) of the sums of the bags.
    With many places the first corners are sorted and the sums of each corner moved to its rows; with few, the time
    goes into passing over the table, so all corners are sorted together.
    """
    num_places, num_rows = first.numel(), len(out)
    if num_places < 2 * num_rows:
        rows = first.flatten(1) + pyramid.step[:, None]  # (4, Q, T)
        order, starts = _readers(rows.flatten(), num_rows)
        bags = _bag_of(order.remainder(num_places), first.shape[-1])
        out += _weigh(pull, bags, starts, shares.flatten()[order])
        return
    order, starts = _readers(first.flatten(), num_rows)
    shares, bags = shares.flatten(1).index_select(1, order), _bag_of(order, first.shape[-1])
    for share, steps in zip(shares, pyramid.steps, strict=True):
        sums = _weigh(pull, bags, starts, share)
        for (start, stop), step in zip(pyramid.bounds, steps, strict=True):
            out[start + step : stop] += sums[start : stop - step]


def _chunks(locations: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the queries that are handled together, and their bags."""
    queries, heads = locations.shape[1:3]
    num_places = queries * heads * locations.shape[3] * locations.shape[4]
    num_chunks = -(-num_places // (CHUNK_PLACES * torch.get_num_threads()))
    size = max(-(-queries // max(num_chunks, 1)), 1)
    for start in range(0, queries if num_places else 0, size):
        stop = min(start + size, queries)
        yield slice(start, stop), slice(start * heads, stop * heads)


def _weigh(table: Tensor, rows: Tensor, starts: Tensor, shares: Tensor | None) -> Tensor:
    """Return for each bag the sum of its `rows` of the table times their `shares`; a bag ends where the next starts."""
    return torch.embedding_bag(table, rows, starts, False, 0, False, shares)[0]


def _sum_bags(table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """Return (n * heads, C) sums of rows of `table` (S * heads, C); rows and shares are (n, heads, 4, K)."""
    size = rows.shape[2] * rows.shape[3]
    starts = torch.arange(0, rows.numel(), size, dtype=torch.int32, device=rows.device)
    return _weigh(table, rows.view(-1), starts, shares.view(-1))


def _dot_bags(table: Tensor, rows: Tensor, pull: Tensor) -> Tensor:
    """Return like `rows` (n, heads, 4, K) the products of each row of the table with the `pull` (C,) of its bag."""
    bags = rows.view(len(pull), -1)
    gains = pull.new_empty(bags.shape)
    size = max(CHUNK_FLOATS * torch.get_num_threads() // (bags.shape[1] * table.shape[1]), 1)
    singles = torch.arange(size * bags.shape[1], dtype=torch.int32, device=rows.device)
    for start in range(0, len(bags), size):
        picked = bags[start : start + size]
        # bags of one row each: faster than index_select
        cells = _weigh(table, picked.reshape(-1), singles[: picked.numel()], None).view(*picked.shape, -1)
        out = gains[start : start + size].unsqueeze(1)
        torch.bmm(pull[start : start + size].unsqueeze(1), cells.transpose(1, 2), out=out)
    return gains.view(rows.shape)


def _readers(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the order of `rows` (N,) by row, and where in it each row of the table starts, (num_rows,) int32."""
    counts = torch.bincount(rows, minlength=num_rows)
    return torch.sort(rows, stable=True).indices, (counts.cumsum(0) - counts).to(torch.int32)


def _bag_of(places: Tensor, size: int) -> Tensor:
    return places.to(torch.int32).div_(size, rounding_mode='floor')
