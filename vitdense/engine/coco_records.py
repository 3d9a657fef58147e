"""COCO's files, annotations and results, as the columns that are scored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdense.data.coco_arrays import CocoArrays, CocoFacts
from vitdense.errors import DataError
from vitdense.metrics.coco_columns import Objects
from vitdense.metrics.coco_curves import IouType
from vitdense.ops.masks import areas_of_runs, boxes_of_runs, runs_of

logger = logging.getLogger('vitdense')


class Numbering(NamedTuple):
    """Which row stands for a picture and for a category: both in the order of their ids, as in pycocotools."""

    images: dict[int | str, int]
    categories: dict[int, int]
    sizes: list[tuple[int, int]]  # (H, W) of each picture


def number(arrays: CocoArrays, facts: CocoFacts) -> tuple[Numbering, np.ndarray]:
    """Return the numbering, and (N,) int64: the picture's row for each picture of the file."""
    ids = [json.loads(arrays.image_ids[row]) for row in range(len(arrays.sizes))]
    words = any(isinstance(name, str) for name in ids)
    order = sorted(range(len(ids)), key=lambda row: str(ids[row]) if words else ids[row])
    rows = np.empty(len(ids), np.int64)
    rows[order] = np.arange(len(ids))
    sizes = [tuple(arrays.sizes[row].tolist()) for row in order]
    categories = {category: row for row, category in enumerate(facts.category_ids)}
    return Numbering({ids[row]: place for place, row in enumerate(order)}, categories, sizes), rows


def truth_of(arrays: CocoArrays, numbering: Numbering, rows: np.ndarray, iou_type: IouType, path: Path) -> Objects:
    """Return the annotated objects, picture after picture. Raises DataError when masks miss that are asked for."""
    image = np.repeat(rows, np.diff(arrays.starts))
    masks: list[dict[str, Any]] = []
    if iou_type == 'segm':
        for row, place in enumerate(image.tolist()):
            masks.append(_mask_of_annotation(arrays, row, numbering.sizes[place], path))
    order = np.argsort(image, kind='stable')
    return Objects(
        image[order],
        arrays.labels[order].astype(np.int64),
        arrays.boxes[order],
        arrays.areas[order],
        arrays.crowd[order],
        np.zeros(len(image)),
        [masks[row] for row in order.tolist()] if masks else (),
    )


def read_results(path: Path, numbering: Numbering, iou_type: IouType) -> Objects:
    """Return the predictions of a COCO results file, picture after picture, in the order of the file.

    As in pycocotools, a box is taken for the size of an object where the rows have boxes, else the mask is; and a mask
    that is missing is made from the box. Raises DataError for rows that are none, and for images and categories that
    the annotation file does not have.
    """
    records = _parse(path)
    boxed = bool(records) and bool(records[0].get('bbox'))
    image, category, scores = (np.zeros(len(records), kind) for kind in (np.int64, np.int64, np.float64))
    boxes, masks = np.zeros((len(records), 4)), []
    for row, record in enumerate(records):
        try:
            image[row] = numbering.images[record['image_id']]
            category[row] = numbering.categories[record['category_id']]
            scores[row] = _number(record['score'])
            if boxed:
                boxes[row] = _four(record['bbox'])
            if iou_type == 'segm' or not boxed:
                size = numbering.sizes[image[row]]
                masks.append(runs_of(record['segmentation'] if 'segmentation' in record else _ring(boxes[row]), size))
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_row(path, row, record, numbering, error) from None
    if not boxed:
        boxes = boxes_of_runs(masks)
    elif iou_type == 'segm':
        logger.warning(
            '%s has boxes and masks: sizes of objects are those of their boxes, as in pycocotools', path.name
        )
    area = boxes[:, 2] * boxes[:, 3] if boxed else areas_of_runs(masks)
    order = np.argsort(image, kind='stable')
    kept = [masks[row] for row in order.tolist()] if iou_type == 'segm' else ()
    return Objects(
        image[order], category[order], boxes[order], area[order], np.zeros(len(records), bool), scores[order], kept
    )


def _mask_of_annotation(arrays: CocoArrays, row: int, size: tuple[int, int], path: Path) -> dict[str, Any]:
    text = arrays.segments[row]
    if not text and not arrays.crowd[row]:
        raise DataError(
            f'annotation {int(arrays.ids[row])} has no segmentation',
            where=str(path),
            why='masks can be compared only with masks',
            fix='score boxes (--iou-type bbox), or give annotations with a segmentation for every object',
        )
    try:
        return runs_of(json.loads(text) if text else _ring(arrays.boxes[row]), size)
    except ValueError as error:  # a crowd's box can still be nonsense
        raise DataError(
            f'annotation {int(arrays.ids[row])}: {error}', where=str(path), why='it has no mask', fix='correct the file'
        ) from None


def _ring(box: np.ndarray) -> list[list[float]]:
    """Return the outline of an x, y, width, height box, in pycocotools' order."""
    x, y, width, height = box.tolist()
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]


def _number(value: Any, what: str = 'its score') -> float:
    if type(value) not in (int, float):
        raise TypeError(f'{what} is not a number')
    return value


def _four(box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError('a box has four numbers: x, y, width, height')
    return [_number(value, 'a part of its box') for value in box]


def _parse(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f'cannot read {path.name}', where=str(path), why=str(error), fix='give a COCO results file (JSON)'
        ) from None
    if isinstance(records, list) and all(isinstance(record, dict) for record in records):
        return records
    raise DataError(
        f'{path.name} is no COCO results file',
        where=str(path),
        why='results are a list of {"image_id", "category_id", "bbox" or "segmentation", "score"}',
        fix='give what tools/test.py --out wrote, or write such a list',
    )


def _bad_row(path: Path, row: int, record: dict, numbering: Numbering, error: Exception) -> DataError:
    """Return the error for a row that cannot be read, in words."""
    missing = [key for key in ('image_id', 'category_id', 'score') if key not in record]
    image, category = (record.get(key) for key in ('image_id', 'category_id'))
    if missing:
        why = f'it has no {missing[0]}'
    elif not isinstance(image, int | str) or image not in numbering.images:
        why = f'no picture of the annotation file has the id {image!r}'
    elif not isinstance(category, int | str) or category not in numbering.categories:
        why = f'the annotation file has no category {category!r}; its ids are {list(numbering.categories)[:12]}'
    elif isinstance(error, KeyError):
        why = f'it has no {error.args[0]}'
    else:
        why = str(error)
    return DataError(
        f'{path.name}: prediction {row + 1} cannot be scored',
        where=f'{path} row {row + 1}: {str(record)[:100]}',
        why=why,
        fix='score against the annotation file of the pictures that were predicted, with its own category ids',
    )
