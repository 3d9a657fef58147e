"""Labels at full resolution from logits at low resolution, without (K, H, W) logits in memory.

Logits cover the padded input; labels are wanted for the original image. In between lie two bilinear resizes
and a crop. Both resizes are linear and separable, so together they are one interpolation along each axis, in which
an output reads at most four cells: `Taps`.

Where the classes are clear, most of the image needs no arithmetic. An interpolated value lies between the smallest
and the largest logit that it is made of: in a tile, a class whose largest logit is below the smallest logit of
another class cannot win. Only the classes that are left, the candidates, are interpolated and compared there, and a
tile with one candidate is filled with it. Where too many are left, all classes are streamed past a running maximum.

Matrix products would need fewer calls, but PyTorch can be set to round their inputs (TF32, bfloat16), on which labels
must not depend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from vitdense.errors import NumericsError

MIN_TILE = 8  # pixels; smaller tiles cost more to handle than they save
CLASS_BLOCK = 16  # classes processed together: their logits stay in the cache
TILE_PIXELS = {'cpu': 1 << 16, 'cuda': 1 << 21}  # pixels of the tiles that are labelled together
BAND_PIXELS = {'cpu': 1 << 18, 'cuda': 1 << 21}  # pixels of the band that is streamed together


class Taps(NamedTuple):
    """A linear map of one axis: `out[i] = sum over t of weights[i, t] * values[cells[i, t]]`. Stored on the CPU."""

    cells: Tensor  # (out, T) int64
    weights: Tensor  # (out, T) float32, not negative, rows sum to one


class Tiling(NamedTuple):
    """One axis cut into tiles of equal size; the last one runs over the end and repeats the last output there."""

    start: Tensor  # (tiles,) int64: the first cell that a tile reads
    weights: Tensor  # (tiles, size, S) float32: its outputs from the S cells from `start` on


def full_resolution_labels(
    logits: Tensor, *, input_size: tuple[int, int], crop: tuple[int, int], out: tuple[int, int]
) -> Tensor:
    """Return the class of the largest logit at every pixel: (H, W) uint8, or int16 above 255 classes.

    `logits (K, h, w)` cover `input_size`. The result is that of: resize to `input_size`, keep the top left `crop`,
    resize to `out` (both bilinear, align_corners=False), argmax over classes, up to the rounding of float32. Equal
    logits go to the lowest class. Raises NumericsError for logits that are not finite, ValueError for a crop larger
    than the input.
    """
    if crop[0] > input_size[0] or crop[1] > input_size[1] or min(*crop, *out) < 1:
        raise ValueError(f'cannot crop {tuple(crop)} from {tuple(input_size)} and resize it to {tuple(out)}')
    logits = logits.detach().float()
    refuse_non_finite(logits)
    if logits.shape[-2:] == tuple(input_size) and tuple(crop) == tuple(out):
        return running_argmax(logits[:, : crop[0], : crop[1]], labels_of(len(logits), logits.device)).contiguous()
    rows, columns = (axis_taps(*axis) for axis in zip(logits.shape[-2:], input_size, crop, out, strict=True))
    tile_rows, tile_columns = (cut(taps, logits.device) for taps in (rows, columns))
    candidates = find_candidates(logits, tile_rows, tile_columns)
    counts = candidates.sum(0)
    # a candidate of a tile costs about twice the time of a streamed class
    if 2 * counts.where(counts > 1, 0).double().mean() > len(logits):
        return stream_labels(logits, rows, columns)
    return prune_labels(logits, tile_rows, tile_columns, candidates)[: out[0], : out[1]].contiguous()


def axis_taps(cells: int, length: int, crop: int, out: int) -> Taps:
    """Return the map of one axis from `cells` over `length` pixels, the first `crop` of them kept, to `out` pixels."""
    first = _bilinear(cells, length)
    if crop == out:
        return Taps(first.cells[:crop], first.weights[:crop])
    second = _bilinear(crop, out)
    if cells == length:
        return second
    chained = second.weights[..., None] * first.weights[second.cells]  # (out, 2, 2)
    return Taps(first.cells[second.cells].flatten(1), chained.flatten(1))


def _bilinear(cells: int, out: int) -> Taps:
    """Return the taps of one bilinear resize, in the float32 arithmetic of torch's own interpolate."""
    scale = torch.tensor(cells, dtype=torch.float32) / out
    position = (scale * (torch.arange(out) + 0.5) - 0.5).clamp(min=0)
    left = position.long().clamp(max=cells - 1)
    right = (left + 1).clamp(max=cells - 1)
    weight = (position - left).clamp(0, 1)
    return Taps(torch.stack([left, right], 1), torch.stack([1 - weight, weight], 1))


def cut(taps: Taps, device: torch.device, size: int | None = None) -> Tiling:
    """Cut an axis into tiles of `size` outputs; by default as many as one cell becomes, which leaves few candidates."""
    length = len(taps.cells)
    if size is None:
        size = max(MIN_TILE, round(length / (int(taps.cells.max()) + 1)))
    number = -(-length // size)
    outputs = torch.arange(number * size).clamp(max=length - 1).view(number, size)
    start = taps.cells[outputs].amin((1, 2))
    offsets = taps.cells[outputs] - start[:, None, None]  # (number, size, T)
    blank = taps.weights.new_zeros(number, size, int(offsets.max()) + 1)
    return Tiling(start.to(device), blank.scatter_add(2, offsets, taps.weights[outputs]).to(device))


def find_candidates(logits: Tensor, rows: Tiling, columns: Tiling) -> Tensor:
    """Return (K, rows, columns) bool: the classes whose largest cell in a tile reaches every other's smallest cell."""
    blocks = logits.split(CLASS_BLOCK)
    lower_bounds = (_pool(block, rows, columns, torch.minimum).amax(0) for block in blocks)
    lower_bound = reduce(torch.maximum, lower_bounds)  # some class has at least this everywhere in the tile
    return torch.cat([_pool(block, rows, columns, torch.maximum) >= lower_bound for block in blocks])


def _pool(logits: Tensor, rows: Tiling, columns: Tiling, extreme: Callable) -> Tensor:
    """Return the extreme of each class over the cells of each tile, and perhaps a few beside them."""
    for axis, tiling in ((1, rows), (2, columns)):
        steps = _cells_of(tiling, logits.shape[axis]).unbind(1)
        logits = reduce(extreme, (logits.index_select(axis, cells) for cells in steps))
    return logits


def prune_labels(logits: Tensor, rows: Tiling, columns: Tiling, candidates: Tensor) -> Tensor:
    """Return the labels of all tiles, by interpolating only the candidates (K, rows, columns) of each."""
    height, width = rows.weights.shape[1], columns.weights.shape[1]
    size = (len(rows.start), height, len(columns.start), width)
    labels = torch.empty(size, dtype=_label_dtype(len(logits)), device=logits.device)
    labels.copy_(candidates.byte().argmax(0)[:, None, :, None])  # final in tiles with one candidate
    counts = candidates.sum(0)
    y, x = (counts > 1).nonzero(as_tuple=True)
    counts, order = counts[y, x].sort()
    y, x = y[order], x[order]
    classes = candidates[:, y, x].T.nonzero(as_tuple=True)[1]  # of the first tile, ascending, then of the next
    first = counts.cumsum(0) - counts  # where the classes of each tile begin
    steps = torch.arange(int(counts.max()) if len(counts) else 0, device=logits.device)
    limit = TILE_PIXELS.get(logits.device.type, TILE_PIXELS['cpu']) // (height * width)
    for start, stop, most in _chunks(counts.tolist(), limit):
        tiles = slice(start, stop)
        # a tile with fewer classes than the others of its chunk repeats its last one, which changes nothing
        chosen = classes[first[tiles, None] + torch.minimum(steps[:most], counts[tiles, None] - 1)]
        labels[y[tiles], :, x[tiles]] = _label_tiles(
            logits, chosen, Tiling(*(part[y[tiles]] for part in rows)), Tiling(*(part[x[tiles]] for part in columns))
        )
    return labels.flatten(2).flatten(0, 1)


def _chunks(counts: list[int], limit: int) -> Iterator[tuple[int, int, int]]:
    """Cut ascending `counts` into runs of at most `limit` tiles with similar counts: (start, stop, largest count)."""
    start = 0
    for stop in range(1, len(counts) + 1):
        if stop == len(counts) or stop - start >= limit or counts[stop] > 1.5 * counts[start]:
            yield start, stop, counts[stop - 1]
            start = stop


def _label_tiles(logits: Tensor, chosen: Tensor, rows: Tiling, columns: Tiling) -> Tensor:
    """Return the labels (n, height, width) of n tiles whose candidates are `chosen` (n, c), ascending.

    `rows` and `columns` hold the part of each of the n tiles.
    """
    y, x = (_cells_of(tiling, side) for tiling, side in zip((rows, columns), logits.shape[1:], strict=True))
    values = logits[chosen[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]  # (n, c, Sy, Sx)
    wide = weigh(values[..., None].unbind(3), columns.weights[:, None, None].unbind(4))  # (n, c, Sy, width)
    row_weights = rows.weights[..., None].unbind(2)  # Sy of (n, height, 1)
    maps = (weigh(each[:, :, None].unbind(1), row_weights) for each in wide.unbind(1))  # c of (n, height, width)
    return running_argmax(maps, chosen.to(_label_dtype(len(logits)))[:, :, None, None].unbind(1))


def _cells_of(tiling: Tiling, side: int) -> Tensor:
    """Return (tiles, S): the cells that each tile reads. Beyond the last one the weights are zero."""
    return (tiling.start[:, None] + torch.arange(tiling.weights.shape[2], device=tiling.start.device)).clamp(
        max=side - 1
    )


def stream_labels(logits: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Return the labels (H, W) by a running maximum over all classes, a band of rows at a time."""
    height = max(BAND_PIXELS.get(logits.device.type, BAND_PIXELS['cpu']) // len(columns.cells), 1)
    bands = zip(rows.cells.split(height), rows.weights.split(height), strict=True)
    columns = Taps(*(part.to(logits.device) for part in columns))
    return torch.cat([_stream_band(logits, Taps(*band), columns) for band in bands])


def _stream_band(logits: Tensor, rows: Taps, columns: Taps) -> Tensor:
    top, bottom = int(rows.cells.min()), int(rows.cells.max()) + 1
    rows = Taps((rows.cells - top).to(logits.device), rows.weights.to(logits.device))
    maps = (resize_map(low, rows, columns) for low in logits[:, top:bottom])
    return running_argmax(maps, labels_of(len(logits), logits.device))


def resize_map(low: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Return the map (H, W) of one class from its cells (h, w); the taps are on their device."""
    wide = weigh([low[:, tap] for tap in columns.cells.unbind(1)], columns.weights.unbind(1))  # (h, w) -> (h, W)
    return weigh([wide[tap] for tap in rows.cells.unbind(1)], rows.weights[..., None].unbind(1))  # (h, W) -> (H, W)


def weigh(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of `values`, each broadcast with its weight."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.addcmul_(value, weight)
    return total


def running_argmax(maps: Iterable[Tensor], labels: Iterable[Tensor]) -> Tensor:
    """Return at every position the label of the largest value, the first among equals."""
    pairs = zip(maps, labels, strict=True)
    best, winner = next(pairs)
    winner = winner.expand(best.shape)
    for values, label in pairs:
        winner = torch.where(values > best, label, winner)
        best = torch.maximum(best, values)
    return winner


def labels_of(num_classes: int, device: torch.device) -> Tensor:
    """Return the numbers of all classes in the type of label maps."""
    return torch.arange(num_classes, dtype=_label_dtype(num_classes), device=device)


def _label_dtype(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 255 else torch.int16


def refuse_non_finite(logits: Tensor) -> None:
    """Raise NumericsError for logits that are not finite."""
    if torch.isfinite(logits.sum()) or torch.isfinite(logits).all():
        return
    raise NumericsError(
        f'{float(logits.isfinite().logical_not().double().mean()):.1%} of the logits of an image are not finite',
        where='full_resolution_labels',
        why='no class is the likeliest where logits are NaN or infinite',
        fix='look for the first tensor of the network that is not finite, or run it with --amp off',
    )
