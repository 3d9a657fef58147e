"""Masks at points, and COCO's ways to write a mask: polygons and run lengths.

These are looked through in Python before any C code sees them: pycocotools ends the whole process on coordinates that
are not finite or far away, and on run lengths that do not fit the picture; so nothing reaches it that `fault_of` has
not passed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

FARTHEST = 100_000  # pixels; a coordinate beyond it is no coordinate
MOST_POINTS = 1_000_000


def fault_of(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Return what is wrong with one object's polygons or run lengths in a picture of `size` (H, W), or None.

    Polygons are `[[x, y, x, y, ...], ...]` with at least three points each; run lengths are `{'size': [H, W],
    'counts': ...}` with counts as a list, or packed as text or bytes.
    """
    if isinstance(segmentation, dict):
        return _fault_of_runs(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        return 'it is neither a list of polygons nor run lengths' if segmentation else 'it is empty'
    if not all(isinstance(ring, list) for ring in segmentation):
        return 'a polygon is a list of its own: [[x, y, x, y, ...]]'
    for ring in segmentation:
        fault = _fault_of_ring(ring)
        if fault:
            return fault
    return None


def _fault_of_ring(ring: list) -> str | None:
    if len(ring) < 6 or len(ring) % 2:
        return f'a polygon has {len(ring)} numbers; three points are six'
    if len(ring) > MOST_POINTS:
        return f'a polygon has {len(ring)} numbers'
    if not {type(value) for value in ring} <= {int, float}:
        return 'a polygon holds something that is no number'
    values = np.array(ring, np.float64)
    if not np.isfinite(values).all():
        return 'a polygon has coordinates that are not finite'
    if np.abs(values).max() > FARTHEST:
        return f'a polygon has coordinates up to {np.abs(values).max():g}'
    return None


def _fault_of_runs(segmentation: dict, size: tuple[int, int]) -> str | None:
    if segmentation.get('size') != list(size):
        return f'run lengths of size {segmentation.get("size")} in a picture of {list(size)} (height, width)'
    counts = segmentation.get('counts')
    if isinstance(counts, list):
        if not {type(count) for count in counts} <= {int}:
            return 'run lengths are whole numbers'
        runs: np.ndarray | None = np.array(counts, np.float64)
    elif isinstance(counts, str | bytes):
        runs = unpack_runs(counts.encode('utf-8', 'replace') if isinstance(counts, str) else counts)
    else:
        runs = None
    if runs is None:
        return 'counts are no run lengths'
    if not len(runs) or runs.min() < 0:
        return 'a run length is negative' if len(runs) else 'there are no run lengths'
    if runs.sum() != size[0] * size[1]:
        return f'run lengths add up to {runs.sum():.0f} of {size[0] * size[1]} pixels'
    return None


def unpack_runs(packed: bytes) -> np.ndarray | None:
    """Return the run lengths in COCO's packed text, or None when it is none.

    Every character carries 5 bits of a number from the lowest on, and whether more follow; from the fourth number on,
    the difference to the number two before is written (pycocotools, `rleToString`).
    """
    codes = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    if place.max() > 6:
        return None  # no run of a picture needs more than 35 bits
    numbers = np.add.reduceat((codes & 31) << 5 * place, first)
    numbers -= np.where(codes[last] & 16, 1 << 5 * (place[last] + 1), 0)  # two's complement
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def runs_of(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return one object's segmentation in a picture of `size` (H, W) as pycocotools' packed run lengths.

    Raises ValueError with the reason when it is not what `fault_of` passes.
    """
    fault = fault_of(segmentation, size)
    if fault:
        raise ValueError(fault)
    if isinstance(segmentation, dict):
        counts = segmentation['counts']
        if isinstance(counts, list):
            return coco.frPyObjects(segmentation, *size)
        return {'size': list(size), 'counts': counts.encode() if isinstance(counts, str) else counts}
    return coco.merge(coco.frPyObjects(segmentation, *size))


def runs_of_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Return (N, H, W) bool masks as pycocotools' packed run lengths."""
    planes = masks.detach().cpu().numpy().astype(np.uint8).transpose(1, 2, 0)  # (N, H, W) -> (H, W, N)
    return coco.encode(np.asfortranarray(planes))


def masks_of_runs(runs: list[dict[str, Any]], size: tuple[int, int]) -> Tensor:
    """Return (N, H, W) bool masks of packed run lengths of pictures of `size` (H, W)."""
    if not runs:
        return torch.zeros(0, *size, dtype=torch.bool)
    planes = coco.decode(runs).transpose(2, 0, 1)  # (H, W, N) -> (N, H, W)
    return torch.from_numpy(np.ascontiguousarray(planes)).bool()


def areas_of_runs(runs: list[dict[str, Any]]) -> np.ndarray:
    """Return (N,) float64: the pixels of each mask."""
    return coco.area(runs).astype(np.float64) if runs else np.zeros(0)


def boxes_of_runs(runs: list[dict[str, Any]]) -> np.ndarray:
    """Return (N, 4) float64 x, y, width, height: the box around each mask."""
    return coco.toBbox(runs).astype(np.float64) if runs else np.zeros((0, 4))


def sample_points(planes: Tensor, points: Tensor, extents: Tensor) -> Tensor:
    """Return (N, P) float32: what `planes` (N, h, w) hold at `points` (N, P, 2) x, y in cells, bilinear between cells.

    The first cell covers [0, 1] and holds its value in the middle, at 0.5. Beyond the first cells, and beyond the
    `extents` (2,) or (N, 2) (rows, columns) of each plane, there is zero: without them it is torch's `grid_sample` with
    `align_corners=False`. `points` (P, 2) are shared by all planes.
    """
    width = planes.shape[-1]
    flat = planes.flatten(1)
    rows, columns = (extents[..., axis, None] - 1 for axis in (0, 1))  # the last ones, as (1,) or (N, 1)
    x, y = (points - 0.5).unbind(-1)  # (P,) or (N, P)
    total = torch.zeros((), device=planes.device)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            inside = (row >= 0) & (column >= 0) & (row <= rows) & (column <= columns)
            weight = ((1 - (y - row).abs()) * (1 - (x - column).abs())).where(inside, 0)
            cell = (row * width + column).where(inside, 0).long()
            values = flat[:, cell] if cell.ndim == 1 else flat.gather(1, cell)
            total = total + values * weight
    return total


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Return (N, 4) float32 xyxy around (N, H, W) bool masks, from edge to edge of their pixels; zeros around nothing.

    In the picture's own pixels this is pycocotools' box of a mask.
    """
    sides = []
    for axis in (1, 2):  # columns, then rows
        seen = masks.any(axis)  # (N, W), (N, H)
        first = seen.int().argmax(1)
        last = seen.shape[1] - seen.flip(1).int().argmax(1)
        sides.append(torch.stack([first, last], dim=1) * seen.any(1, keepdim=True))
    (left, right), (top, bottom) = (side.unbind(1) for side in sides)
    return torch.stack([left, top, right, bottom], dim=1).float()
