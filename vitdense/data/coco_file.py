"""A COCO annotation file as flat arrays, with everything that is wrong in it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdense.errors import DataError
from vitdense.ops.masks import fault_of

SLACK = 0.5  # pixels that a box may stick out: files round
FATAL = ('id', 'box', 'category', 'segmentation')  # an annotation with such a fault says nothing
MOST_FAULTS = 1000  # remembered of each kind; all are counted


class Texts(NamedTuple):
    """Many short texts in one array of bytes."""

    data: np.ndarray  # uint8
    ends: np.ndarray  # (N,) int64 end of each text

    def __getitem__(self, row: int) -> str:
        return self.data[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes().decode()


class CocoArrays(NamedTuple):
    """The pictures and annotations of a file: N pictures in the file's order, A annotations, picture after picture."""

    image_ids: Texts  # N, as JSON: numbers or words
    file_names: Texts  # N
    sizes: np.ndarray  # (N, 2) int32 (H, W); zero: the file does not say
    starts: np.ndarray  # (N + 1,) int64: picture i has the annotations starts[i] ... starts[i + 1] - 1
    ids: np.ndarray  # (A,) int64
    labels: np.ndarray  # (A,) int32 row of the category, in the order of category ids
    boxes: np.ndarray  # (A, 4) float64 x, y, width, height as in the file
    areas: np.ndarray  # (A,) float64
    crowd: np.ndarray  # (A,) bool
    segments: Texts  # A, as JSON ('' where there is none); empty unless asked for


class CocoFacts(NamedTuple):
    """What is known about a file beside its arrays."""

    category_ids: list[int]  # sorted
    names: list[str]  # of the categories, in that order
    annotated: bool  # whether there is a list of annotations at all
    faults: list[list]  # [kind, annotation or image id, reason]
    counts: dict[str, int]  # faults by kind


def read_coco(path: Path, *, masks: bool = False, data: bytes | None = None) -> tuple[CocoArrays, CocoFacts]:
    """Return what the annotation file at `path` (its content, if given, is `data`) says; segmentations with `masks`.

    What single annotations do wrong is collected in the facts, by kind: `id`, `box`, `category` and `segmentation` (no
    use can be made of it: it is not in the arrays), `orphan` (its picture is not in the file: not in the arrays),
    `empty` (nothing of the box, or less than a pixel, lies in the picture), `outside` (a part of the box does not),
    `area` (not a number; the box's is taken), `double` (the id occurs twice), `name` (of a file: it leads out of the
    folder). Raises DataError when the file is no COCO file.
    """
    content = _parse(path, data)
    categories = _categories(content, path)
    pictures = _pictures(content, path)
    faults = Faults()
    for picture in pictures:
        if leads_out(picture['file_name']):
            faults.add('name', picture['id'], f'{picture["file_name"]!r} leads out of the folder of pictures')
    sizes = np.array([_size(picture) for picture in pictures], np.int32).reshape(-1, 2)
    rows = _Rows(pictures, sizes, categories, faults, masks)
    annotations = content.get('annotations')
    if annotations is not None and not isinstance(annotations, list):
        raise _no_coco(path, "'annotations' is not a list")
    for place, record in enumerate(annotations or ()):
        rows.add(place, record)
    arrays = rows.arrays()
    _check_boxes(arrays, faults)
    _check_ids(arrays, faults)
    names = [categories[number] for number in sorted(categories)]
    return arrays, CocoFacts(sorted(categories), names, annotations is not None, faults.listed, dict(faults.counts))


class Faults:
    """Faults by kind: all are counted, some are remembered."""

    def __init__(self) -> None:
        self.listed: list[list] = []
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, number: int | str, reason: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= MOST_FAULTS:
            self.listed.append([kind, number, reason])


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
        fault = _fault_of_box(box)
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
            texts([picture['file_name'] for picture in self.pictures]),
            self.sizes,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array(ids, np.int64)[order],
            np.array(labels, np.int32)[order],
            np.array(self.boxes, np.float64).reshape(-1, 4)[order],
            np.array(areas, np.float64)[order],
            np.array(crowd, bool)[order],
            texts([self.segments[row] for row in order.tolist()] if self.masks else []),
        )


def texts(words: Sequence[str]) -> Texts:
    """Return `words` as one array."""
    coded = [word.encode() for word in words]
    data = np.frombuffer(b''.join(coded), np.uint8)
    return Texts(data, np.cumsum([len(word) for word in coded], dtype=np.int64))


def inside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (A, 4) xyxy of x, y, width, height boxes, cut at the borders of pictures of `sizes` (A, 2) (H, W).

    Where the size is not known (zero) nothing is cut.
    """
    corners = boxes.copy()
    corners[:, 2:] += corners[:, :2]
    known = (sizes > 0).all(1)
    limits = np.where(known[:, None], sizes[:, ::-1], np.inf)
    corners[known] = corners[known].clip(0)
    return np.minimum(corners, np.tile(limits, 2))


def is_empty(corners: np.ndarray) -> np.ndarray:
    """Return (A,) bool: the boxes (A, 4) xyxy that are less than one pixel wide or high."""
    return (corners[:, 2:] - corners[:, :2] < 1).any(1)


def sizes_of(arrays: CocoArrays) -> np.ndarray:
    """Return (A, 2) int32 (H, W): for each annotation the size of its picture."""
    return np.repeat(arrays.sizes, np.diff(arrays.starts), axis=0)


def looks_like_corners(arrays: CocoArrays) -> float | None:
    """Return the share of boxes that leave their picture when more than a fifth do and all fit as xyxy, else None."""
    sizes = sizes_of(arrays)
    known = (sizes > 0).all(1)
    boxes, limits = arrays.boxes[known], sizes[known][:, ::-1] + 1
    if not len(boxes):
        return None
    share = float((boxes[:, :2] + boxes[:, 2:] > limits).any(1).mean())
    fits = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= limits).all()
    return share if share > 0.2 and fits else None


def leads_out(name: str) -> bool:
    """Whether a file name is no plain path below a folder (links are looked at when the file is opened)."""
    return (
        name.startswith('/')
        or '..' in name.split('/')
        or '\\' in name
        or '://' in name
        or '\0' in name
        or name[1:2] == ':'
    )


def _check_boxes(arrays: CocoArrays, faults: Faults) -> None:
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


def _check_ids(arrays: CocoArrays, faults: Faults) -> None:
    numbers, counts = np.unique(arrays.ids, return_counts=True)
    for number, count in zip(numbers[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        faults.add('double', number, f'{count} annotations have this id')


def _fault_of_box(box: Any) -> str | None:
    if not isinstance(box, list) or len(box) != 4:
        return 'a box has four numbers: x, y, width, height'
    if not {type(value) for value in box} <= {int, float}:
        return 'a box is made of numbers'
    return None if all(map(math.isfinite, box)) else 'its numbers are not finite'


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
        if type(number) is not int or not isinstance(record.get('name'), str):
            raise _no_coco(path, f'a category needs a whole number as id, and a name: {str(record)[:80]}')
        if number in categories or record['name'] in categories.values():
            raise DataError(
                f'two categories are called {record["name"]!r} or have the id {number}',
                where=str(path),
                why='results are reported, saved and compared by name and by id',
                fix='give every category a name and an id of its own',
            )
        categories[number] = record['name']
    return categories


def _pictures(content: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    pictures = content['images']
    for record in pictures:
        if not isinstance(record, dict) or not isinstance(record.get('file_name'), str):
            raise _no_coco(path, f'a picture needs a file_name: {str(record)[:80]}')
        if type(record.get('id')) not in (int, str):
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
