"""What can be wrong in a COCO annotation file, and what is done about it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.coco_arrays import CocoArrays, CocoFacts, inside, is_empty, sizes_of
from vitdense.errors import DataError

SLACK = 0.5  # pixels that a box may stick out: files round
FATAL = ('id', 'box', 'category', 'segmentation', 'name')  # what has such a fault says nothing
MOST_FAULTS = 1000  # remembered of each kind; all are counted


class Faults:
    """Faults by kind: all are counted, some are remembered."""

    def __init__(self) -> None:
        self.listed: list[list] = []
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, number: int | str, reason: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= MOST_FAULTS:
            self.listed.append([kind, number, reason])


def check_boxes(arrays: CocoArrays, faults: Faults) -> int:
    """Note the boxes that lie outside of their picture, wholly or in part; return how many can be learnt from."""
    sizes = sizes_of(arrays)
    corners = inside(arrays.boxes, sizes)
    wide = corners[:, 2:] - corners[:, :2]
    empty = is_empty(corners)
    cut = ((np.abs(wide - arrays.boxes[:, 2:]) > SLACK).any(1)) & ~empty
    for kind, rows, what in (
        ('empty', empty, 'less than a pixel of it lies in the picture'),
        ('outside', cut, 'a part of it lies outside of the picture'),
    ):
        for row in np.flatnonzero(rows).tolist():
            height, width = sizes[row].tolist()
            box = ', '.join(f'{value:g}' for value in arrays.boxes[row].tolist())
            faults.add(kind, int(arrays.ids[row]), f'bbox [{box}] in {width} x {height}: {what}')
    return int((~empty).sum())


def check_ids(arrays: CocoArrays, faults: Faults) -> None:
    """Note the ids that several annotations have."""
    numbers, counts = np.unique(arrays.ids, return_counts=True)
    for number, count in zip(numbers[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        faults.add('double', number, f'{count} annotations have this id')


def fault_of_box(box: Any) -> str | None:
    """Return why `box` is no box, or None."""
    if not isinstance(box, list) or len(box) != 4:
        return 'a box has four numbers: x, y, width, height'
    if not {type(value) for value in box} <= {int, float}:
        return 'a box is made of numbers'
    return None if all(map(math.isfinite, box)) else 'its numbers are not finite'


def fault_of_name(name: Any) -> str | None:
    """Return why a file name is no plain path below a folder, or None. (Links are looked at when it is opened.)"""
    if not isinstance(name, str) or not name:
        return 'it has no file_name'
    strange = name.startswith('/') or name[1:2] == ':' or '..' in name.split('/')
    if strange or any(mark in name for mark in ('\\', '://', '\0')):
        return f'{name!r} leads out of the folder of pictures'
    return None


def looks_like_corners(arrays: CocoArrays) -> float | None:
    """Return the share of boxes that leave their picture when more than a fifth do and 99 % fit as xyxy, else None."""
    sizes = sizes_of(arrays)
    known = (sizes > 0).all(1)
    boxes, limits = arrays.boxes[known], sizes[known][:, ::-1] + 1
    if not len(boxes):
        return None
    share = float((boxes[:, :2] + boxes[:, 2:] > limits).any(1).mean())
    fits = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= limits).all(1)
    return share if share > 0.2 and fits.mean() > 0.99 else None


def refuse_faults(path: Path, facts: CocoFacts, *, names: bool = True) -> None:
    """Raise DataError when some annotations say nothing; or, with `names`, when pictures cannot be found."""
    kinds = FATAL if names else FATAL[:-1]
    fatal = [fault for fault in facts.faults if fault[0] in kinds]
    if fatal:
        count = sum(facts.counts.get(kind, 0) for kind in kinds)
        raise DataError(
            f'{count} annotations or pictures cannot be used',
            where=str(path),
            why='\n'.join(f'{kind} {number}: {reason}' for kind, number, reason in fatal[:10])
            + ('\n...' if count > 10 else ''),
            fix=f'correct or remove them; python tools/check_data.py {path} lists all',
        )


def refuse_corners(path: Path, facts: CocoFacts) -> None:
    """Raise DataError when boxes are corners, x, y, x2, y2, in place of x, y, width, height."""
    if facts.corners is not None:
        raise DataError(
            f'{facts.corners:.0%} of boxes leave the image if read as xywh; they fit as xyxy',
            where=str(path),
            why='COCO boxes are x, y, width, height',
            fix='write bbox as [x, y, x2 - x, y2 - y]',
        )


def refuse_nothing(path: Path, arrays: CocoArrays, facts: CocoFacts) -> None:
    """Raise DataError when there is no box to learn from."""
    if not facts.usable:
        raise DataError(
            f'no annotations in {path.name}',
            where=str(path),
            why='there is no box to learn from' + (': all are empty or outside' if len(arrays.ids) else ''),
            fix='check the path, and the file with tools/check_data.py',
        )
