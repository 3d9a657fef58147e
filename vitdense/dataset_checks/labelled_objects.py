"""Labels that are valid but odd: objects labelled twice, boxes of unusual sizes, rare classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo, sizes_of
from vitdense.dataset_checks.report import Finding

SAME_BOX = 0.95  # IoU from which two boxes of a class in one image are one object
MAX_PAIRS = 2000  # objects of a class in an image; of more, only boxes that are equal are found
ENOUGH = 20  # objects of a class from which its usual size is known
FAR = 6.0  # robust standard deviations of the logarithm of the area
TIMES = 8.0  # an unusual box is at least this many times larger or smaller than the median of its class
FEW = 10  # a class with fewer objects is rare
SHARE = 0.01  # a class with less than this share of the objects of the most frequent one is rare


def odd_objects(arrays: CocoArrays, info: CocoFileInfo) -> Iterator[Finding]:
    """Yield `twice` (an object that is labelled twice) and `unusual` (a box far from the sizes of its class)."""
    boxes = torch.as_tensor(arrays.boxes, dtype=torch.float64)
    valid = ~arrays.crowd & (arrays.boxes[:, 2:] > 0).all(1) & np.isfinite(arrays.boxes).all(1)
    image = np.repeat(np.arange(len(arrays.sizes)), np.diff(arrays.starts))
    rows = np.flatnonzero(valid)
    key = image[rows].astype(np.int64) * (len(info.names) + 1) + arrays.labels[rows]
    order = np.argsort(key, kind='stable')
    for group in np.split(rows[order], np.flatnonzero(np.diff(key[order])) + 1):
        for first, second in _same_boxes(box_convert(boxes[group], 'xywh', 'xyxy')):
            name, file = info.names[int(arrays.labels[group[first]])], arrays.file_names[int(image[group[first]])]
            reason = f'{name}: the same box as annotation {arrays.name(int(group[first]))}, in {file}'
            yield Finding('twice', str(arrays.name(int(group[second]))), reason)
    for label, name in enumerate(info.names):
        yield from _unusual(arrays, rows[arrays.labels[rows] == label], name, image)


def _same_boxes(corners: Tensor) -> list[tuple[int, int]]:
    """Return pairs of rows of (N, 4) xyxy boxes that are the same."""
    if len(corners) <= MAX_PAIRS:
        return [(a, b) for a, b in torch.triu(box_iou(corners, corners) > SAME_BOX, 1).nonzero().tolist()]
    firsts: dict[tuple[float, ...], int] = {}
    pairs = ((firsts.setdefault(tuple(box), row), row) for row, box in enumerate(corners.tolist()))
    return [(first, row) for first, row in pairs if first != row]


def _unusual(arrays: CocoArrays, rows: np.ndarray, name: str, image: np.ndarray) -> Iterator[Finding]:
    """Yield the boxes of a class whose share of their image (or area, where sizes are unknown) is unusual."""
    if len(rows) < ENOUGH:
        return
    sizes = sizes_of(arrays)[rows].astype(np.float64)
    pixels = sizes.prod(1) if (sizes > 0).all() else np.ones(len(rows))
    log_area = np.log(arrays.boxes[rows, 2:].prod(1) / pixels)
    distance = log_area - np.median(log_area)
    spread = 1.4826 * np.median(np.abs(distance))  # the standard deviation, of normally distributed values
    far = (np.abs(distance) > FAR * spread) & (np.abs(distance) > np.log(TIMES))
    for row, times in zip(rows[far], np.exp(distance[far]), strict=True):
        words = f'{times:.0f} times larger' if times > 1 else f'{1 / times:.0f} times smaller'
        width, height = arrays.boxes[row, 2:]
        reason = f'{name}: {width:.0f} x {height:.0f} pixels are {words} than usual'
        yield Finding('unusual', str(arrays.name(int(row))), f'{reason}, in {arrays.file_names[int(image[row])]}')


def rare_classes(objects: Mapping[str, int], what: str) -> Iterator[Finding]:
    """Yield `rare`: the classes with few objects, of themselves or beside the most frequent class."""
    most = max(objects, key=objects.__getitem__, default=None)
    for name, count in objects.items():
        if 0 < count < max(FEW, SHARE * objects[most]):
            beside = f'; {most} has {objects[most]:,}' if objects[most] > count else ''
            yield Finding('rare', name, f'{count:,} {what}{beside}')
