"""Faults of COCO annotation files: which are errors and which are corrected."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo, clip_boxes, is_empty, sizes_of
from vitdense.errors import DataError
from vitdense.ops.coco_numbers import fault_of_numbers, shown, side

SLACK = 0.5  # pixels that a box may stick out: files round
FATAL = ('id', 'box', 'category', 'crowd', 'segmentation', 'name')  # kinds of faults that are errors
FIXES = {
    'name': 'a file_name is a path below the folder of images, with / between folders',
    'crowd': 'iscrowd is 0 for an object and 1 for a crowd',
    'segmentation': 'skip_unmasked=True leaves out the images of objects without a usable mask',
}
CORRECTIONS = {
    'missing_image': 'without image',
    'duplicate_id': 'with ids that occur twice',
    'box_from_segmentation': 'taken from segmentations',
    'invalid_polygon': 'with polygons that are left out',
    'area': 'whose area is that of the box',
    'rotation': 'with a rotation of CVAT that is not applied',
    'image_size': 'in images of unreadable size',
}
MAX_FAULTS = 1000  # listed of each kind; all are counted


class Faults:
    """Faults by kind: all are counted, the first of each kind are listed."""

    def __init__(self) -> None:
        self.listed: list[list] = []
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, number: int | str, reason: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_FAULTS:
            self.listed.append([kind, number, reason])


def check_boxes(arrays: CocoArrays, faults: Faults) -> int:
    """Add the boxes that lie outside of their image, wholly or in part; return the number of boxes to train on."""
    sizes = sizes_of(arrays)
    with np.errstate(over='ignore', invalid='ignore'):  # a number of 300 digits lies outside all the same
        corners = clip_boxes(arrays.boxes, sizes)
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
    """Add the ids that several annotations have."""
    if len(arrays.long_ids.ends):
        counted = Counter(arrays.name(row) for row in range(len(arrays.ids)))
        double = [(number, count) for number, count in counted.items() if count > 1]
    else:
        numbers, counts = np.unique(arrays.ids, return_counts=True)
        double = zip(numbers[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)
    for number, count in double:
        faults.add('duplicate_id', number, f'{count} annotations have this id')


def fault_of_box(box: Any) -> str | None:
    """Return the fault of a `bbox`, or None."""
    if not isinstance(box, list) or len(box) != 4:
        return 'a box has four numbers: x, y, width, height'
    return fault_of_numbers(box)


def fault_of_size(image: Mapping[str, Any]) -> str | None:
    """Return the fault of the width and height of an image record, or None; both may be missing."""
    stated = [image.get('width'), image.get('height')]
    if stated == [None, None] or None not in map(side, stated):
        return None
    return f'width {shown(stated[0])}, height {shown(stated[1])}: both are whole numbers of pixels above 0'


def fault_of_name(name: Any) -> str | None:
    """Return the fault of a file name that is no plain path below a folder, or None; links are checked on opening."""
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


def share_of_corners(boxes: np.ndarray, sizes: np.ndarray) -> float | None:
    """Return the share of boxes (A, 4) that leave their image, of `sizes` (A, 2) (H, W), zero where unknown.

    None unless more than a fifth do and 99 % fit as xyxy.
    """
    known = (sizes > 0).all(1)
    boxes, limits = boxes[known], sizes[known][:, ::-1] + 1
    if not len(boxes):
        return None
    with np.errstate(over='ignore', invalid='ignore'):
        share = float((boxes[:, :2] + boxes[:, 2:] > limits).any(1).mean())
    fits = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= limits).all(1)
    return share if share > 0.2 and fits.mean() > 0.99 else None


def are_fractions(boxes: np.ndarray) -> bool:
    """Whether all (A, 4) boxes lie in [0, 1], fractions of the image, and some are not made of 0 and 1 alone."""
    return bool(len(boxes)) and bool(((boxes >= 0) & (boxes <= 1)).all()) and bool((boxes % 1 > 0).any())


def check_faults(path: Path, info: CocoFileInfo, *, ignored_kinds: Sequence[str] = ()) -> None:
    """Raise DataError for fatal faults of annotations or images, except those of `ignored_kinds`."""
    kinds = [kind for kind in FATAL if kind not in ignored_kinds and info.counts.get(kind)]
    if not kinds:
        return
    fatal = [fault for fault in info.faults if fault[0] in kinds]
    count = sum(info.counts[kind] for kind in kinds)
    raise DataError(
        f'{count} annotations or images cannot be used',
        where=str(path),
        why='\n'.join(f'{kind} {number}: {reason}' for kind, number, reason in fatal[:10])
        + ('\n...' if count > 10 else ''),
        fix=''.join(f'{FIXES[kind]};\n' for kind in kinds if kind in FIXES)
        + f'correct or remove them: python tools/check_data.py {shlex.quote(str(path))} lists all',
    )


def check_has_images(path: Path, arrays: CocoArrays) -> None:
    """Raise DataError when the file lists no image."""
    if not len(arrays.sizes):
        raise DataError(
            f'{path.name} lists no images',
            where=str(path),
            why="its list 'images' is empty",
            fix='check the path, and the program that wrote the file',
        )


def check_box_layout(path: Path, info: CocoFileInfo) -> None:
    """Raise DataError when boxes are corners, x, y, x2, y2, or fractions, in place of x, y, width, height in pixels."""
    if info.corners is not None:
        raise DataError(
            f'{info.corners:.0%} of boxes leave the image if read as xywh; they fit as xyxy',
            where=str(path),
            why='COCO boxes are x, y, width, height',
            fix='write bbox as [x, y, x2 - x, y2 - y]',
        )
    if info.fractions:
        raise DataError(
            'all boxes lie in [0, 1]: they look like fractions of the image',
            where=str(path),
            why='COCO boxes are x, y, width, height in pixels',
            fix='multiply x and width by the width of the image, y and height by its height',
        )


def is_trainable(arrays: CocoArrays) -> np.ndarray:
    """Return (A,) bool: annotations that are no crowd and have a box of at least a pixel in their image."""
    with np.errstate(over='ignore', invalid='ignore'):
        return ~arrays.crowd & ~is_empty(clip_boxes(arrays.boxes, sizes_of(arrays)))


def no_training_objects(path: Path, arrays: CocoArrays, *, chosen: int) -> DataError:
    """Return the error for a file without objects to train on; `chosen` annotations are of the classes in use."""
    total, crowds = len(arrays.ids), int(arrays.crowd.sum())
    why = 'there is no box to train on'
    if total and not chosen:
        why += f': none of the {total:,} annotations is of the classes and images that are chosen'
    elif crowds == total > 0:
        why += f': all {total:,} annotations are crowds (iscrowd 1), which are no targets'
    elif total:
        why += f': of {total:,} annotations {crowds:,} are crowds (iscrowd 1), the others are empty or outside'
    return DataError(
        f'no object to train on in {path.name}' if total else f'no annotations in {path.name}',
        where=str(path),
        why=why,
        fix=('write iscrowd 0 for single objects; ' if crowds else '')
        + 'check the path, and the file with tools/check_data.py',
    )


def describe_corrections(info: CocoFileInfo, *, evaluation: bool) -> str:
    """Return a summary of the corrections made to a file, '' for none."""
    texts = CORRECTIONS if evaluation else {'empty': 'dropped', 'outside': 'clamped', **CORRECTIONS}
    parts = [f'{text} {info.counts[kind]}' for kind, text in texts.items() if info.counts.get(kind)]
    return f'boxes {", ".join(parts)} (tools/check_data.py lists them)' if parts else ''
