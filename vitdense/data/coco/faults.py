"""What can be wrong in a COCO annotation file, and what is done about it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo, inside, is_empty, sizes_of
from vitdense.errors import DataError
from vitdense.ops.coco_numbers import fault_of_numbers, shown, side

SLACK = 0.5  # pixels that a box may stick out: files round
FATAL = ('id', 'box', 'category', 'crowd', 'segmentation', 'name')  # what has such a fault says nothing
FIXES = {
    'name': 'a file_name is a path below the folder of images, with / between folders',
    'crowd': 'iscrowd is 0 for an object and 1 for a crowd',
    'segmentation': 'skip_unmasked=True leaves out the images of objects without a usable mask',
}
REMARKS = {
    'orphan': 'without image',
    'double': 'with ids that occur twice',
    'derived': 'taken from segmentations',
    'ring': 'with polygons that are left out',
    'area': 'whose area is that of the box',
    'rotation': 'that CVAT rotates and nobody here',
    'stated': 'in images of unreadable size',
}
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
    """Note the boxes that lie outside of their image, wholly or in part; return how many can be learnt from."""
    sizes = sizes_of(arrays)
    with np.errstate(over='ignore', invalid='ignore'):  # a number of 300 digits lies outside all the same
        corners = inside(arrays.boxes, sizes)
        wide = corners[:, 2:] - corners[:, :2]
        empty = is_empty(corners)
        cut = ((np.abs(wide - arrays.boxes[:, 2:]) > SLACK).any(1)) & ~empty
    for kind, rows, what in (
        ('empty', empty, 'less than a pixel of it lies in the image'),
        ('outside', cut, 'a part of it lies outside of the image'),
    ):
        for row in np.flatnonzero(rows).tolist():
            height, width = sizes[row].tolist()
            box = ', '.join(f'{value:g}' for value in arrays.boxes[row].tolist())
            faults.add(kind, arrays.name(row), f'bbox [{box}] in {width} x {height}: {what}')
    return int((~empty & ~arrays.crowd).sum())


def check_ids(arrays: CocoArrays, faults: Faults) -> None:
    """Note the ids that several annotations have."""
    if len(arrays.long_ids.ends):
        counted = Counter(arrays.name(row) for row in range(len(arrays.ids)))
        double = [(number, count) for number, count in counted.items() if count > 1]
    else:
        numbers, counts = np.unique(arrays.ids, return_counts=True)
        double = zip(numbers[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)
    for number, count in double:
        faults.add('double', number, f'{count} annotations have this id')


def fault_of_box(box: Any) -> str | None:
    """Return why `box` is no box, or None."""
    if not isinstance(box, list) or len(box) != 4:
        return 'a box has four numbers: x, y, width, height'
    return fault_of_numbers(box)


def fault_of_size(image: Mapping[str, Any]) -> str | None:
    """Return why the width and height that the record of an image states are none, or None; both may be missing."""
    stated = [image.get('width'), image.get('height')]
    if stated == [None, None] or None not in map(side, stated):
        return None
    return f'width {shown(stated[0])}, height {shown(stated[1])}: both are whole numbers of pixels above 0'


def fault_of_name(name: Any) -> str | None:
    """Return why a file name is no plain path below a folder, or None. (Links are looked at when it is opened.)"""
    if not isinstance(name, str) or not name:
        return 'it has no file_name'
    if not is_encodable(name):
        return f'{name!r} holds a character that no file name can have'
    parts = name.replace('\\', '/').split('/')
    if name[0] in '/\\' or name[1:2] == ':' or '..' in parts or '://' in name or '\0' in name:
        return f'{name!r} leads out of the folder of images'
    if '\\' in name:
        return f'{name!r} has backslashes, as Windows writes paths; write {name.replace(chr(92), "/")!r}'
    return None


def is_encodable(name: str) -> bool:
    """Whether `name` is text, or the bytes of a file name as Python writes those that are no UTF-8."""
    try:
        return bool(name.encode(errors='surrogateescape'))
    except UnicodeEncodeError:
        return False


def looks_like_corners(arrays: CocoArrays) -> float | None:
    """Return the share of boxes that leave their image when more than a fifth do and 99 % fit as xyxy, else None."""
    return share_of_corners(arrays.boxes, sizes_of(arrays))


def share_of_corners(boxes: np.ndarray, sizes: np.ndarray) -> float | None:
    """Return what `looks_like_corners` does, for (A, 4) boxes in images of `sizes` (A, 2) (H, W); zero: not known."""
    known = (sizes > 0).all(1)
    boxes, limits = boxes[known], sizes[known][:, ::-1] + 1
    if not len(boxes):
        return None
    with np.errstate(over='ignore', invalid='ignore'):
        share = float((boxes[:, :2] + boxes[:, 2:] > limits).any(1).mean())
    fits = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= limits).all(1)
    return share if share > 0.2 and fits.mean() > 0.99 else None


def looks_like_fractions(arrays: CocoArrays) -> bool:
    """Whether all boxes lie in [0, 1]: fractions of the image where pixels are meant."""
    return are_fractions(arrays.boxes)


def are_fractions(boxes: np.ndarray) -> bool:
    """Whether all (A, 4) boxes lie in [0, 1] and some are not made of 0 and 1 alone."""
    return bool(len(boxes)) and bool(((boxes >= 0) & (boxes <= 1)).all()) and bool((boxes % 1 > 0).any())


def refuse_faults(path: Path, facts: CocoFileInfo, *, but: Sequence[str] = ()) -> None:
    """Raise DataError when some annotations or images cannot be used; of the kinds in `but` there may be some."""
    kinds = [kind for kind in FATAL if kind not in but and facts.counts.get(kind)]
    if not kinds:
        return
    fatal = [fault for fault in facts.faults if fault[0] in kinds]
    count = sum(facts.counts[kind] for kind in kinds)
    raise DataError(
        f'{count} annotations or images cannot be used',
        where=str(path),
        why='\n'.join(f'{kind} {number}: {reason}' for kind, number, reason in fatal[:10])
        + ('\n...' if count > 10 else ''),
        fix=''.join(f'{FIXES[kind]};\n' for kind in kinds if kind in FIXES)
        + f'correct or remove them: python tools/check_data.py {shlex.quote(str(path))} lists all',
    )


def refuse_no_images(path: Path, arrays: CocoArrays) -> None:
    """Raise DataError when the file lists no image."""
    if not len(arrays.sizes):
        raise DataError(
            f'{path.name} lists no images',
            where=str(path),
            why="its list 'images' is empty",
            fix='check the path, and the program that wrote the file',
        )


def refuse_layout(path: Path, facts: CocoFileInfo) -> None:
    """Raise DataError when boxes are corners, x, y, x2, y2, or fractions, in place of x, y, width, height in pixels."""
    if facts.corners is not None:
        raise DataError(
            f'{facts.corners:.0%} of boxes leave the image if read as xywh; they fit as xyxy',
            where=str(path),
            why='COCO boxes are x, y, width, height',
            fix='write bbox as [x, y, x2 - x, y2 - y]',
        )
    if facts.fractions:
        raise DataError(
            'all boxes lie in [0, 1]: they look like fractions of the image',
            where=str(path),
            why='COCO boxes are x, y, width, height in pixels',
            fix='multiply x and width by the width of the image, y and height by its height',
        )


def learnable(arrays: CocoArrays) -> np.ndarray:
    """Return (A,) bool: the annotations that are no crowd and have a box of at least a pixel in their image."""
    with np.errstate(over='ignore', invalid='ignore'):
        return ~arrays.crowd & ~is_empty(inside(arrays.boxes, sizes_of(arrays)))


def nothing_to_learn(path: Path, arrays: CocoArrays, *, chosen: int) -> DataError:
    """Return the error for a file without any object to learn from, where `chosen` annotations are of the classes and
    images that are used.
    """
    total, crowds = len(arrays.ids), int(arrays.crowd.sum())
    why = 'there is no box to learn from'
    if total and not chosen:
        why += f': none of the {total:,} annotations is of the classes and images that are chosen'
    elif crowds == total > 0:
        why += f': all {total:,} annotations are crowds (iscrowd 1), which no task takes for an object to find'
    elif total:
        why += f': of {total:,} annotations {crowds:,} are crowds (iscrowd 1), the others are empty or outside'
    return DataError(
        f'no object to learn from in {path.name}' if total else f'no annotations in {path.name}',
        where=str(path),
        why=why,
        fix=('write iscrowd 0 for single objects; ' if crowds else '')
        + 'check the path, and the file with tools/check_data.py',
    )


def remarks(facts: CocoFileInfo, *, evaluation: bool) -> str:
    """Return in a few words what is put right in a file and what cannot be used; '' where that is nothing."""
    words = REMARKS if evaluation else {'empty': 'dropped', 'outside': 'clamped', **REMARKS}
    said = [f'{word} {facts.counts[kind]}' for kind, word in words.items() if facts.counts.get(kind)]
    return f'boxes {", ".join(said)} (tools/check_data.py says which)' if said else ''
