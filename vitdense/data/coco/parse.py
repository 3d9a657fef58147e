"""Parsing of a COCO annotation file into flat arrays, and a list of its faults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo
from vitdense.data.coco.faults import (
    Faults,
    are_fractions,
    check_boxes,
    check_ids,
    fault_of_box,
    fault_of_name,
    fault_of_size,
    is_encodable,
    share_of_corners,
    sizes_of,
)
from vitdense.data.coco.structure import parse, read_categories, read_images
from vitdense.data.string_array import texts
from vitdense.ops.coco_numbers import by_id, fault_of_numbers, find, flag, shown, side, whole
from vitdense.ops.masks import box_of, checked

INT64 = 2**63


def read_coco(path: Path, *, masks: bool = False, data: bytes | None = None) -> tuple[CocoArrays, CocoFileInfo]:
    """Parse the annotation file at `path`, whose content is `data` if given; segmentations with `masks`.

    Faults are collected by kind. Fatal ones are `id`, `box`, `category` and `crowd` (iscrowd is neither 0 nor 1), whose
    annotations are not in the arrays, `segmentation` (with `masks`; the annotation is in the arrays without it) and
    `name` (a file name that is missing or leads out of the folder). The others are `missing_image` (the annotation is
    not in the arrays), `empty` (less than a pixel of the box lies in the image), `outside` (a part of the box lies
    outside), `box_from_segmentation` (bbox is missing), `empty_segmentation`, `invalid_polygon` (some polygons are left
    out), `area` (no number; the box's is used), `duplicate_id`, `rotation` (of CVAT: bbox is that of the object before
    it was rotated) and `image_size` (width or height are no whole numbers).

    Raises DataError when the file is no COCO file.
    """
    content = parse(path, data)
    categories, root = read_categories(content, path)
    images, image_ids = read_images(content, path)
    faults = Faults()
    for record, name in zip(images, image_ids, strict=True):
        for kind, fault in (('name', fault_of_name(record.get('file_name'))), ('image_size', fault_of_size(record))):
            if fault:
                faults.add(kind, name, fault)
    sizes = np.array([_size(record) for record in images], np.int32).reshape(-1, 2)
    rows = _Rows(image_ids, sizes, sorted(categories), faults, masks)
    annotations = content.get('annotations')
    for index, record in enumerate(annotations or ()):
        rows.add(index, record)
    names = [str(record.get('file_name', '')) for record in images]
    arrays = rows.arrays([name if is_encodable(name) else '' for name in names])
    usable = check_boxes(arrays, faults)
    check_ids(arrays, faults)
    return arrays, CocoFileInfo(
        sorted(categories),
        [categories[number] for number in sorted(categories)],
        annotations is not None,
        faults.listed,
        dict(faults.counts),
        usable,
        share_of_corners(arrays.boxes, sizes_of(arrays)),
        are_fractions(arrays.boxes),
        root,
    )


class _Rows:
    """The columns of the annotation arrays as lists."""

    def __init__(
        self, image_ids: Sequence[int | str], sizes: np.ndarray, categories: Sequence[int], faults: Faults, masks: bool
    ) -> None:
        self.image_ids, self.sizes, self.faults, self.masks = image_ids, sizes, faults, masks
        self.row_of = by_id(image_ids)
        self.label_of = by_id(categories)
        self.shapes = [(height, width) if height else None for height, width in sizes.tolist()]
        self.image: list[int] = []
        self.numbers: list[tuple] = []  # id, label, area, crowd
        self.boxes: list[list[float]] = []
        self.segments: list[str] = []

    def add(self, index: int, record: Any) -> None:
        """Add one annotation, or its fault."""
        raw_id = record.get('id') if isinstance(record, dict) else None
        number = whole(raw_id)
        if number is None:
            name = f'#{index}' if raw_id is None else raw_id if isinstance(raw_id, str) else shown(raw_id)
            return self.faults.add('id', name, 'it has no whole number as id')
        row = find(self.row_of, record.get('image_id'))
        if row is None:
            return self.faults.add('missing_image', number, f'no image has the id {shown(record.get("image_id"))}')
        box = record.get('bbox')
        fault = fault_of_box(box)
        if fault:
            box = self._derived(record, number, row)
            if box is None:
                return self.faults.add('box', number, f'bbox {shown(record.get("bbox"))}: {fault}')
        label = find(self.label_of, record.get('category_id'))
        if label is None:
            return self.faults.add('category', number, f'no category has the id {shown(record.get("category_id"))}')
        crowd = record.get('iscrowd')
        crowded = False if crowd is None else flag(crowd)
        if crowded is None:
            return self.faults.add('crowd', number, f'iscrowd {shown(crowd)} is not 0 or 1')
        if 'attributes' in record:
            self._look_for_rotation(record, number)
        self.image.append(row)
        self.segments.append(self._segment(record, number, row) if self.masks else '')
        self.numbers.append((number, label, self._area(record, number, box), crowded))
        self.boxes.append(box)

    def _derived(self, record: Mapping[str, Any], number: int, row: int) -> list[float] | None:
        """Return the box around the segmentation of an annotation that has no bbox; None where there is none."""
        segmentation = record.get('segmentation')
        if record.get('bbox') not in (None, []) or segmentation in (None, [], {}):
            return None
        parts, _, fault = checked(segmentation, self.shapes[row])
        if fault:
            return None
        self.faults.add('box_from_segmentation', number, 'it has no bbox; that of its segmentation is taken')
        return box_of(parts, self.shapes[row])

    def _segment(self, record: Mapping[str, Any], number: int, row: int) -> str:
        """Return the segmentation as JSON, '' where there is none or none that can be used."""
        segmentation = record.get('segmentation')
        if segmentation in (None, [], {}):
            if segmentation is not None:
                self.faults.add('empty_segmentation', number, 'its segmentation is empty')
            return ''
        parts, left_out, fault = checked(segmentation, self.shapes[row])
        if fault:
            self.faults.add('segmentation', number, fault)
            return ''
        if left_out:
            self.faults.add('invalid_polygon', number, f'{len(left_out)} of its polygons are left out: {left_out[0]}')
        return json.dumps(parts, separators=(',', ':'))

    def _area(self, record: Mapping[str, Any], number: int, box: Sequence[float]) -> float:
        area = record.get('area')
        if area is not None:
            fault = fault_of_numbers([area])
            if fault is None and area >= 0:
                return area
            self.faults.add(
                'area', number, f'area {shown(area, 40)} is not a number of pixels; that of its box is taken'
            )
        return abs(float(box[2]) * float(box[3]))

    def _look_for_rotation(self, record: Mapping[str, Any], number: int) -> None:
        attributes = record['attributes']
        angle = attributes.get('rotation') if isinstance(attributes, dict) else None
        if type(angle) in (int, float) and angle % 360:
            text = f'it is rotated by {angle:g} degrees (CVAT); bbox is that of the rectangle before it was rotated'
            self.faults.add('rotation', number, text)

    def arrays(self, file_names: Sequence[str]) -> CocoArrays:
        """Return everything, image after image."""
        image = np.array(self.image, np.int64)
        order = np.argsort(image, kind='stable')
        ids, labels, areas, crowd = zip(*self.numbers, strict=True) if self.numbers else ((), (), (), ())
        counts = np.bincount(image, minlength=len(self.image_ids))
        fits = not ids or (max(ids) < INT64 and min(ids) >= -INT64)
        return CocoArrays(
            texts([json.dumps(name) for name in self.image_ids]),
            texts(file_names),
            self.sizes,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            (np.array(ids, np.int64) if fits else np.arange(1, len(ids) + 1))[order],
            np.array(labels, np.int32)[order],
            np.array(self.boxes, np.float64).reshape(-1, 4)[order],
            np.array(areas, np.float64)[order],
            np.array(crowd, bool)[order],
            texts([self.segments[row] for row in order.tolist()] if self.masks else []),
            texts([] if fits else [str(ids[row]) for row in order.tolist()]),
        )


def _size(record: Mapping[str, Any]) -> tuple[int, int]:
    height, width = side(record.get('height')), side(record.get('width'))
    return (0, 0) if height is None or width is None else (height, width)
