"""A COCO annotation file as flat arrays, with everything that is wrong in it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.coco_arrays import CocoArrays, CocoFacts, texts
from vitdense.data.coco_faults import Faults, check_boxes, check_ids, fault_of_box, fault_of_name, looks_like_corners
from vitdense.errors import DataError
from vitdense.ops.masks import fault_of


def read_coco(path: Path, *, masks: bool = False, data: bytes | None = None) -> tuple[CocoArrays, CocoFacts]:
    """Return what the annotation file at `path` (its content, if given, is `data`) says; segmentations with `masks`.

    What single annotations do wrong is collected in the facts, by kind: `id`, `box`, `category` and `segmentation` (no
    use can be made of it: it is not in the arrays), `orphan` (its picture is not in the file: not in the arrays),
    `empty` (nothing of the box, or less than a pixel, lies in the picture), `outside` (a part of the box does not),
    `hollow` (a segmentation that was asked for is empty), `area` (not a number; the box's is taken), `double` (the id
    occurs twice), `name` (of a file: there is none, or it leads out of the folder). Raises DataError when the file is
    no COCO file.
    """
    content = _parse(path, data)
    categories = _categories(content, path)
    pictures = _pictures(content, path)
    faults = Faults()
    for picture in pictures:
        fault = fault_of_name(picture.get('file_name'))
        if fault:
            faults.add('name', picture['id'], fault)
    sizes = np.array([_size(picture) for picture in pictures], np.int32).reshape(-1, 2)
    rows = _Rows(pictures, sizes, categories, faults, masks)
    annotations = content.get('annotations')
    if annotations is not None and not isinstance(annotations, list):
        raise _no_coco(path, "'annotations' is not a list")
    for place, record in enumerate(annotations or ()):
        rows.add(place, record)
    arrays = rows.arrays()
    usable = check_boxes(arrays, faults)
    check_ids(arrays, faults)
    names = [categories[number] for number in sorted(categories)]
    return arrays, CocoFacts(
        sorted(categories),
        names,
        annotations is not None,
        faults.listed,
        dict(faults.counts),
        usable,
        looks_like_corners(arrays),
    )


class _Rows:
    """The columns of the annotations, while they are read."""

    def __init__(
        self,
        pictures: Sequence[Mapping[str, Any]],
        sizes: np.ndarray,
        categories: Mapping[int, str],
        faults: Faults,
        masks: bool,
    ) -> None:
        self.pictures, self.sizes, self.faults, self.masks = pictures, sizes, faults, masks
        self.row_of = {picture['id']: row for row, picture in enumerate(pictures)}
        self.label_of = {number: label for label, number in enumerate(sorted(categories))}
        self.shapes = [(height, width) for height, width in sizes.tolist()]
        self.picture: list[int] = []
        self.numbers: list[tuple] = []  # id, label, area, crowd
        self.boxes: list[list[float]] = []
        self.segments: list[str] = []

    def add(self, place: int, record: Any) -> None:
        """Take one annotation, or note what is wrong with it."""
        number = record.get('id') if isinstance(record, dict) else None
        if type(number) is not int:
            return self.faults.add(
                'id', number if isinstance(number, str) else f'#{place}', 'it has no whole number as id'
            )
        box, label = record.get('bbox'), self.label_of.get(_hashable(record.get('category_id')))
        row = self.row_of.get(_hashable(record.get('image_id')))
        if row is None:
            return self.faults.add('orphan', number, f'no picture has the id {record.get("image_id")!r}')
        fault = fault_of_box(box)
        if fault:
            return self.faults.add('box', number, f'bbox {str(box)[:60]}: {fault}')
        if label is None:
            return self.faults.add('category', number, f'no category has the id {record.get("category_id")!r}')
        segment = ''
        if self.masks and record.get('segmentation') not in (None, [], {}):
            fault = fault_of(record['segmentation'], self.shapes[row])
            if fault:
                return self.faults.add('segmentation', number, fault)
            segment = json.dumps(record['segmentation'], separators=(',', ':'))
        elif self.masks and record.get('segmentation') is not None:
            self.faults.add('hollow', number, 'its segmentation is empty')
        self.picture.append(row)
        self.numbers.append((number, label, self._area(record, number), bool(record.get('iscrowd', 0))))
        self.boxes.append(box)
        self.segments.append(segment)

    def _area(self, record: Mapping[str, Any], number: int) -> float:
        area = record.get('area')
        if type(area) in (int, float) and math.isfinite(area) and area >= 0:
            return area
        if area is not None:
            self.faults.add('area', number, f'area {str(area)[:40]} is not a number of pixels')
        return abs(record['bbox'][2] * record['bbox'][3])

    def arrays(self) -> CocoArrays:
        """Return everything, picture after picture."""
        picture = np.array(self.picture, np.int64)
        order = np.argsort(picture, kind='stable')
        ids, labels, areas, crowd = zip(*self.numbers, strict=True) if self.numbers else ((), (), (), ())
        counts = np.bincount(picture, minlength=len(self.pictures))
        return CocoArrays(
            texts([json.dumps(picture['id']) for picture in self.pictures]),
            texts([str(picture.get('file_name', '')) for picture in self.pictures]),
            self.sizes,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array(ids, np.int64)[order],
            np.array(labels, np.int32)[order],
            np.array(self.boxes, np.float64).reshape(-1, 4)[order],
            np.array(areas, np.float64)[order],
            np.array(crowd, bool)[order],
            texts([self.segments[row] for row in order.tolist()] if self.masks else []),
        )


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | str) else None


def _size(picture: Mapping[str, Any]) -> tuple[int, int]:
    sides = picture.get('height'), picture.get('width')
    known = all(type(side) is int and 0 < side < 2**31 for side in sides)
    return sides if known else (0, 0)


# -------------------------------------------------------------------------------------------------------- structure


def _parse(path: Path, data: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes() if data is None else data)
    except OSError as error:
        raise DataError(
            f'cannot read {path.name}', where=str(path), why=str(error), fix='check the path, and data_root=...'
        ) from None
    except (ValueError, RecursionError) as error:
        raise _no_coco(path, f'it is not JSON: {error}') from None
    if not isinstance(content, dict) or not isinstance(content.get('images'), list):
        raise _no_coco(path, "there is no list 'images' in it")
    return content


def _categories(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    listed = content.get('categories')
    if not isinstance(listed, list) or not listed:
        raise _no_coco(path, "there is no list 'categories' in it: nothing says what is to be found")
    categories: dict[int, str] = {}
    for record in listed:
        number = record.get('id') if isinstance(record, dict) else None
        if type(number) is not int:
            raise _no_coco(path, f'a category needs a whole number as id: {str(record)[:80]}')
        name = str(record.get('name', number))
        if number in categories or name in categories.values():
            raise DataError(
                f'two categories are called {name!r} or have the id {number}',
                where=str(path),
                why='results are reported, saved and compared by name and by id',
                fix='give every category a name and an id of its own',
            )
        categories[number] = name
    return categories


def _pictures(content: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    pictures = content['images']
    for record in pictures:
        if not isinstance(record, dict) or type(record.get('id')) not in (int, str):
            raise _no_coco(path, f'a picture needs an id, a number or a word: {str(record)[:80]}')
    ids = Counter(record['id'] for record in pictures)
    double = [number for number, count in ids.items() if count > 1]
    if double:
        raise DataError(
            f'{len(double)} image ids occur twice, such as {double[0]!r}',
            where=str(path),
            why='annotations and results name their picture by its id',
            fix='give every picture an id of its own',
        )
    return pictures


def _no_coco(path: Path, why: str) -> DataError:
    return DataError(
        f'{path.name} is no COCO annotation file',
        where=str(path),
        why=why,
        fix='give a file with images, annotations and categories; docs/your_own_data.md shows one',
    )
