"""COCO polygons and run-length encodings of masks: validation and conversion; masks sampled at points.

Segmentations are validated in Python before they are passed to pycocotools, which aborts the process on coordinates
that are not finite or very large, and on run lengths that do not fit the image.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from vitdense.ops.coco_numbers import side, whole

FARTHEST = 100_000  # pixels; larger coordinates are rejected
MAX_POINTS = 1_000_000
MAX_PIXELS = 2**31 - 1  # of an image: pycocotools counts pixels in 32 bits
FEW = 255  # masks per call of pycocotools' `area`, which counts them in 8 bits: NumPy 2 raises for more

Size = tuple[int, int]  # (H, W)


def fault_of(segmentation: Any, size: Size | None) -> str | None:
    """Return what is wrong with one object's polygons or run lengths in an image of `size` (H, W), or None.

    Polygons are `[[x, y, x, y, ...], ...]` with at least three points each; run lengths are `{'size': [H, W],
    'counts': ...}` with counts as a list, or packed as text or bytes. Where `size` is None,
    the size in the run lengths is used.
    """
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        return f'an image of (H, W) {size} has more pixels than masks can have'
    if isinstance(segmentation, dict):
        return _fault_of_runs(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return 'it is neither a list of polygons nor run lengths' if segmentation else 'it is empty'
    if not all(isinstance(ring, list) for ring in segmentation):
        return 'a polygon is a list of its own: [[x, y, x, y, ...]]'
    return next(filter(None, map(_fault_of_ring, segmentation)), None)


def readable_parts(segmentation: Any) -> tuple[Any, list[str]]:
    """Return a segmentation in the layout that `fault_of` reads, and the reasons why polygons were omitted.

    Points in lists of their own, `[[x, y], ...]` (one polygon) or `[[[x, y], ...], ...]`, are flattened.
    Invalid polygons are omitted where others of the same object are valid: pycocotools gives polygons with fewer than
    three points no pixel either.
    """
    if not isinstance(segmentation, list):
        return segmentation, []
    if len(segmentation) > 2 and all(_is_point(point) for point in segmentation):
        segmentation = [segmentation]
    rings = [list(chain.from_iterable(ring)) if _is_points(ring) else ring for ring in segmentation]
    faults = [_fault_of_ring(ring) if isinstance(ring, list) else 'a polygon is a list of its own' for ring in rings]
    if all(faults) or not any(faults):
        return rings, []
    return [ring for ring, fault in zip(rings, faults, strict=True) if not fault], list(filter(None, faults))


def checked(segmentation: Any, size: Size | None) -> tuple[Any, list[str], str | None]:
    """Return the result of `readable_parts`, and what is wrong with it in an image of `size`, or None."""
    fault = fault_of(segmentation, size)
    if fault is None:
        return segmentation, [], None
    parts, left_out = readable_parts(segmentation)
    return parts, left_out, fault_of(parts, size)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(part, list) for part in value)


def _is_points(ring: Any) -> bool:
    return isinstance(ring, list) and len(ring) > 2 and all(_is_point(point) for point in ring)


def _fault_of_ring(ring: list) -> str | None:
    if len(ring) < 6 or len(ring) % 2:
        return f'a polygon has {len(ring)} numbers; three points are six'
    if len(ring) > MAX_POINTS:
        return f'a polygon has {len(ring)} numbers'
    if not {type(value) for value in ring} <= {int, float}:
        return 'a polygon holds something that is no number'
    try:
        values = np.array(ring, np.float64)
    except OverflowError:
        return 'a polygon has coordinates that are too large'
    if not np.isfinite(values).all():
        return 'a polygon has coordinates that are not finite'
    if np.abs(values).max() > FARTHEST:
        return f'a polygon has coordinates up to {np.abs(values).max():g}'
    return None


def _fault_of_runs(segmentation: dict, size: Size | None) -> str | None:
    own = _size_of_runs(segmentation)
    if own is None or (size is not None and own != tuple(size)):
        where = '' if size is None else f' in an image of {list(size)} (height, width)'
        return f'run lengths of size {segmentation.get("size")}{where}'
    runs = _counts(segmentation.get('counts'))
    if isinstance(runs, str):
        return runs
    if not len(runs) or runs.min() < 0:
        return 'a run length is negative' if len(runs) else 'there are no run lengths'
    if runs.sum() != own[0] * own[1]:
        return f'run lengths add up to {runs.sum():.0f} of {own[0] * own[1]} pixels'
    return None


def _size_of_runs(segmentation: dict) -> Size | None:
    """Return the (H, W) in run lengths, or None."""
    stated = segmentation.get('size')
    sides = [side(value) for value in stated] if isinstance(stated, list | tuple) and len(stated) == 2 else [None]
    return None if None in sides or sides[0] * sides[1] > MAX_PIXELS else tuple(sides)


def _counts(counts: Any) -> np.ndarray | str:
    """Return run lengths as numbers, or the reason why they are invalid."""
    if isinstance(counts, list):
        numbers = counts if set(map(type, counts)) <= {int} else [whole(count) for count in counts]
        if None in numbers:
            return 'run lengths are whole numbers'
        if any(abs(count) > MAX_PIXELS for count in numbers):
            return f'a run length is beyond {MAX_PIXELS}' if min(numbers) >= 0 else 'a run length is negative'
        return np.array(numbers, np.int64)
    packed = counts.encode('utf-8', 'replace') if isinstance(counts, str) else counts
    runs = unpack_runs(packed) if isinstance(packed, bytes) else None
    return 'counts are no run lengths' if runs is None else runs


def unpack_runs(packed: bytes) -> np.ndarray | None:
    """Return the run lengths in COCO's compressed RLE, or None when it is invalid.

    Every character carries 5 bits of a number from the lowest on, and whether more follow; from the fourth number on,
    the difference to the number two before is written (pycocotools, `rleToString`).
    """
    codes = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    digit = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if digit.max() > 6:
        return None  # no run of an image needs more than 35 bits
    numbers = np.add.reduceat((codes & 31) << 5 * digit, first)
    numbers -= np.where(codes[last] & 16, 1 << 5 * (digit[last] + 1), 0)  # two's complement
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def runs_of(segmentation: Any, size: Size | None) -> dict[str, Any]:
    """Return one object's segmentation in an image of `size` (H, W) as pycocotools' packed run lengths.

    Where `size` is None, that of the run lengths is used; polygons need it. Raises ValueError with the reason of
    `fault_of` for an invalid segmentation.
    """
    fault = fault_of(segmentation, size)
    if fault or (size is None and not isinstance(segmentation, dict)):
        raise ValueError(fault or 'a polygon is no mask without the size of its image')
    if isinstance(segmentation, dict):
        size, counts = _size_of_runs(segmentation), segmentation['counts']
        if isinstance(counts, list):
            return coco.frPyObjects({'size': list(size), 'counts': [whole(count) for count in counts]}, *size)
        return {'size': list(size), 'counts': counts.encode() if isinstance(counts, str) else counts}
    return coco.merge(coco.frPyObjects(segmentation, *size))


def box_of(segmentation: Any, size: Size | None) -> list[float]:
    """Return the box x, y, width, height of valid polygons or run lengths."""
    if isinstance(segmentation, dict):
        return boxes_of_runs([runs_of(segmentation, size)])[0].tolist()
    x, y = np.concatenate([np.array(ring, np.float64) for ring in segmentation]).reshape(-1, 2).T
    return [float(value) for value in (x.min(), y.min(), np.ptp(x), np.ptp(y))]


def runs_of_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Return (N, H, W) bool masks as pycocotools' packed run lengths."""
    values = masks.detach().cpu().numpy().astype(np.uint8).transpose(1, 2, 0)  # (N, H, W) -> (H, W, N)
    return coco.encode(np.asfortranarray(values))


def masks_of_runs(runs: list[dict[str, Any]], size: tuple[int, int]) -> Tensor:
    """Return (N, H, W) bool masks of packed run lengths of images of `size` (H, W)."""
    if not runs:
        return torch.zeros(0, *size, dtype=torch.bool)
    values = coco.decode(runs).transpose(2, 0, 1)  # (H, W, N) -> (N, H, W)
    return torch.from_numpy(np.ascontiguousarray(values)).bool()


def run_of_part(mask: np.ndarray, corner: tuple[int, int], size: Size) -> dict[str, Any]:
    """Return the packed run lengths of a mask of `size` that is False but for `mask` (h, w) bool at (top, left)."""
    top, left = corner
    edges = np.diff(np.pad(mask.astype(np.int8), ((1, 1), (0, 0))), axis=0).T  # (w, h + 1): 1 begins a run, -1 ends it
    (columns, starts), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    positions = (left + columns) * size[0] + top + np.stack([starts, ends])  # (2, number of runs), column by column
    joined = positions[0, 1:] != positions[1, :-1]  # a run over the end of a column goes on in the next one
    positions = (
        positions.T.reshape(-1)[np.concatenate([[True], np.repeat(joined, 2), [True]])]
        if len(columns)
        else positions[0]
    )
    counts = np.diff(positions, prepend=0, append=size[0] * size[1]).tolist()
    return coco.frPyObjects({'size': list(size), 'counts': counts if counts[-1] else counts[:-1]}, *size)


def areas_of_runs(runs: list[dict[str, Any]]) -> np.ndarray:
    """Return (N,) float64: the pixels of each mask."""
    parts = [coco.area(runs[start : start + FEW]) for start in range(0, len(runs), FEW)]
    return np.concatenate(parts).astype(np.float64) if runs else np.zeros(0)


def boxes_of_runs(runs: list[dict[str, Any]]) -> np.ndarray:
    """Return (N, 4) float64 x, y, width, height: the box around each mask."""
    return coco.toBbox(runs).astype(np.float64) if runs else np.zeros((0, 4))


def sample_points(values: Tensor, points: Tensor, extents: Tensor) -> Tensor:
    """Return (N, P) float32: `values` (N, h, w) at `points` (N, P, 2), (x, y) in cells, by bilinear interpolation.

    The first cell covers [0, 1] and its centre is 0.5. Outside the `extents` (2,) or (N, 2), (rows, columns), of each
    map values are zero; for whole maps this is `grid_sample` of torch with `align_corners=False`. `points` of shape
    (P, 2) are shared by all maps.
    """
    width = values.shape[-1]
    flat = values.flatten(1)
    rows, columns = (extents[..., axis, None] - 1 for axis in (0, 1))  # the last ones, as (1,) or (N, 1)
    x, y = (points - 0.5).unbind(-1)  # (P,) or (N, P)
    total = torch.zeros((), device=values.device)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            inside = (row >= 0) & (column >= 0) & (row <= rows) & (column <= columns)
            weight = ((1 - (y - row).abs()) * (1 - (x - column).abs())).where(inside, 0)
            cell = (row * width + column).where(inside, 0).long()
            values = flat[:, cell] if cell.ndim == 1 else flat.gather(1, cell)
            total = total + values * weight
    return total


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Return (N, 4) float32 xyxy around (N, H, W) bool masks, from edge to edge of their pixels; zeros for empty masks.

    In the image's own pixels this is pycocotools' box of a mask.
    """
    sides = []
    for axis in (1, 2):  # columns, then rows
        occupied = masks.any(axis)  # (N, W), (N, H)
        first = occupied.int().argmax(1)
        last = occupied.shape[1] - occupied.flip(1).int().argmax(1)
        sides.append(torch.stack([first, last], dim=1) * occupied.any(1, keepdim=True))
    (left, right), (top, bottom) = (side.unbind(1) for side in sides)
    return torch.stack([left, top, right, bottom], dim=1).float()
