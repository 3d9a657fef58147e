"""COCO results files as arrays, one for each column, for scoring; rows that cannot be scored are errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.coco.faults import are_fractions, share_of_corners
from vitdense.errors import DataError, did_you_mean
from vitdense.metrics.coco_columns import Objects
from vitdense.metrics.coco_curves import IouType
from vitdense.ops.coco_numbers import find, shown
from vitdense.ops.masks import areas_of_runs, boxes_of_runs, checked, runs_of
from vitdense.scoring.coco_records import Numbering, ring_of

logger = logging.getLogger('vitdense')
BOX_FIX = 'write bbox as [x, y, width, height] in pixels'
MASK_FIX = "write run lengths of the image's size as pycocotools.mask.encode gives them, or polygons"


def read_results(path: Path, numbering: Numbering, iou_type: IouType, *, ignore_unknown: bool = False) -> Objects:
    """Return the predictions of a COCO results file, image after image, in the order of the file.

    As in pycocotools the first row decides: where it has a box, boxes are taken for the size of an object, and a mask
    that is missing is made from the box; else masks are, and a box that is missing is made from the mask. With
    `ignore_unknown` predictions of categories that the annotation file does not have are left out, with a count.
    Raises DataError for invalid rows, and for images and categories that the annotation file does not have.
    """
    rows = _Results(path, numbering, iou_type, _parse(path))
    for row, record in enumerate(rows.records):
        try:
            rows.add(record, ignore_unknown=ignore_unknown)
        except _BadRow as error:
            raise DataError(
                f'{path.name}: prediction {row + 1} cannot be scored',
                where=f'{path} row {row + 1}: {shown(record, 100)}',
                why=error.why,
                fix=error.fix,
            ) from None
    return rows.objects()


class _BadRow(Exception):
    """A row that cannot be scored."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


class _Results:
    """Columns of the predictions read so far."""

    def __init__(self, path: Path, numbering: Numbering, iou_type: IouType, records: list[dict[str, Any]]) -> None:
        self.path, self.numbering, self.iou_type, self.records = path, numbering, iou_type, records
        self.boxed = bool(records) and bool(records[0].get('bbox'))
        self.masked = iou_type == 'segm' or not self.boxed
        self.image: list[int] = []
        self.category: list[int] = []
        self.scores: list[float] = []
        self.boxes: list[list[float] | None] = []
        self.masks: list[dict[str, Any]] = []
        self.ignored = self.left_out = 0

    def add(self, record: Mapping[str, Any], *, ignore_unknown: bool) -> None:
        """Add one prediction."""
        image, category = self._indices(record)
        if category is None and ignore_unknown:
            self.ignored += 1
            return
        if category is None:
            raise self._unknown_category(record)
        box = self._box(record)
        score = record['score']
        self.scores.append(
            score if type(score) is float else _numbers([score], 'its score', 'write a number as score')[0]
        )
        if self.masked:
            self.masks.append(self._mask(record, box, image))
        self.image.append(image)
        self.category.append(category)
        self.boxes.append(box)

    def _indices(self, record: Mapping[str, Any]) -> tuple[int, int | None]:
        for key in ('image_id', 'category_id', 'score'):
            if key not in record:
                near = did_you_mean(key, record).replace('did you mean', 'is it')
                raise _BadRow(f'it has no {key}{near}', f'write {key} into every row')
        image = find(self.numbering.images, record['image_id'])
        if image is None:
            raise _BadRow(
                f'no image of the annotation file has the id {shown(record["image_id"])}',
                'score against the annotation file of the images that were predicted',
            )
        return image, find(self.numbering.categories, record['category_id'])

    def _unknown_category(self, record: Mapping[str, Any]) -> _BadRow:
        known = list(self.numbering.categories)
        fix = 'write the category ids of the annotation file; --ignore-unknown leaves out predictions of other '
        fix += 'categories, as pycocotools does'
        used = {row.get('category_id') for row in self.records if type(row.get('category_id')) is int}
        if used <= set(range(len(known))) and known != list(range(len(known))):
            fix = (
                f'they look like class numbers from 0: write the ids of the categories instead, {known[:3]} ...; or '
                + fix
            )
        ids = ', '.join(map(str, known[:12])) + (', ...' if len(known) > 12 else '')
        return _BadRow(f'the annotation file has no category {shown(record["category_id"])}; its ids are {ids}', fix)

    def _box(self, record: Mapping[str, Any]) -> list[float] | None:
        box = record.get('bbox')
        if not box and not record.get('segmentation'):
            near = did_you_mean(
                'bbox',
                [key for key in record if key not in ('image_id', 'category_id', 'score', 'bbox', 'segmentation')],
            )
            raise _BadRow(f'it has neither bbox nor segmentation{near.replace("did you mean", "is it")}', BOX_FIX)
        if not box and self.boxed:
            raise _BadRow('it has no bbox, and the first row has one', f'{BOX_FIX}, in all rows or in none')
        if not box:
            return None
        if not isinstance(box, list) or len(box) != 4:
            raise _BadRow(f'bbox {shown(box)}: a box has four numbers: x, y, width, height', BOX_FIX)
        return _numbers(box, 'a part of its box', BOX_FIX)

    def _mask(self, record: Mapping[str, Any], box: list[float] | None, image: int) -> dict[str, Any]:
        segmentation = record.get('segmentation')
        if not segmentation and not self.boxed:
            raise _BadRow('it has no segmentation, and the first row has one and no bbox', MASK_FIX)
        size = self.numbering.sizes[image]
        parts, left_out, fault = checked(segmentation or ring_of(box), size)
        self.left_out += len(left_out)
        if fault:
            raise _BadRow(fault, MASK_FIX)
        if size is None and not isinstance(parts, dict):
            raise _BadRow(
                'the annotation file does not give the size of its image, in which it could be drawn',
                'write width and height into the images of the annotation file',
            )
        return runs_of(parts, size)

    def objects(self) -> Objects:
        """Return everything, image after image, and log what is unusual."""
        count = len(self.image)
        image, category = np.array(self.image, np.int64), np.array(self.category, np.int64)
        boxes = boxes_of_runs(self.masks) if not self.boxed else np.zeros((count, 4))
        own = [row for row, box in enumerate(self.boxes) if box is not None]
        boxes[own] = np.array([self.boxes[row] for row in own], np.float64).reshape(-1, 4)
        self._log(boxes[own], image[own])
        with np.errstate(over='ignore', invalid='ignore'):
            area = boxes[:, 2] * boxes[:, 3] if self.boxed else areas_of_runs(self.masks)
        order = np.argsort(image, kind='stable')
        kept = [self.masks[row] for row in order.tolist()] if self.iou_type == 'segm' else ()
        scores = np.array(self.scores, np.float64)
        return Objects(
            image[order], category[order], boxes[order], area[order], np.zeros(count, bool), scores[order], kept
        )

    def _log(self, boxes: np.ndarray, image: np.ndarray) -> None:
        name = self.path.name
        if self.ignored:
            text = '%s: %d predictions of categories that the annotation file does not have are left out'
            logger.warning(text, name, self.ignored)
        if self.left_out:
            logger.warning('%s: %d polygons are none, and left out', name, self.left_out)
        if self.boxed and self.iou_type == 'segm' and any(record.get('segmentation') for record in self.records):
            logger.warning('%s has boxes and masks: sizes of objects are those of their boxes, as in pycocotools', name)
        empty = int((boxes[:, 2:] <= 0).any(axis=1).sum())
        if empty:
            logger.warning('%s: %d boxes have no positive width or height and match nothing', name, empty)
        sizes = np.array([size or (0, 0) for size in self.numbering.sizes], np.int64).reshape(-1, 2)[image]
        share = share_of_corners(boxes, sizes)
        if share is not None:
            text = '%s: %.0f %% of boxes leave the image if read as x, y, width, height; they fit as x, y, x2, y2'
            logger.warning(text, name, 100 * share)
        elif are_fractions(boxes):
            logger.warning(
                '%s: all boxes lie in [0, 1]; are they fractions of the image? COCO boxes are in pixels', name
            )


def _numbers(values: list[Any], what: str, fix: str) -> list[float]:
    """Return `values` as float64 can hold them; the metric refuses NaN and infinity."""
    try:
        kinds = set(map(type, values))
        if kinds <= {int, float}:
            return values if int not in kinds else [float(value) for value in values]
    except OverflowError:
        raise _BadRow(f'{what} is a number that is too large', fix) from None
    odd = next(value for value in values if type(value) not in (int, float))
    raise _BadRow(f'{what} is not a number: {shown(odd)}', fix)


def _parse(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f'cannot read {path.name}', where=str(path), why=str(error), fix='check the path') from None
    except (ValueError, RecursionError) as error:
        fix = 'give a COCO results file (JSON), as tools/test.py --out writes it'
        raise DataError(f'cannot read {path.name}', where=str(path), why=f'it is not JSON: {error}', fix=fix) from None
    if isinstance(records, list) and all(isinstance(record, dict) for record in records):
        return records
    what = 'it is an annotation file; ' if isinstance(records, dict) and 'annotations' in records else ''
    raise DataError(
        f'{path.name} is no COCO results file',
        where=str(path),
        why=what + 'results are a list of {"image_id", "category_id", "bbox" or "segmentation", "score"}',
        fix='give the annotation file first and the results second; tools/test.py --out writes such results'
        if what
        else 'give what tools/test.py --out wrote, or write such a list',
    )
