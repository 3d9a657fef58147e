"""Precision and recall of detections by COCO's rules: pycocotools, and a faster engine that gives the same arrays."""

from __future__ import annotations

import importlib.util
import io
from collections import defaultdict
from contextlib import redirect_stdout
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval

from vitdense.arguments import check, check_choice
from vitdense.metrics.coco_columns import Objects

IouType = Literal['bbox', 'segm']
Engine = Literal['pycocotools', 'fast', 'auto']
NUMBERS = {  # name: (curve, index of the area range, index of the detection limit), as `COCOeval.summarize` has them
    'AP': ('precision', 0, 2),
    'AP50': ('precision', 0, 2),
    'AP75': ('precision', 0, 2),
    'APs': ('precision', 1, 2),
    'APm': ('precision', 2, 2),
    'APl': ('precision', 3, 2),
    'AR1': ('recall', 0, 0),
    'AR10': ('recall', 0, 1),
    'AR100': ('recall', 0, 2),
    'ARs': ('recall', 1, 2),
    'ARm': ('recall', 2, 2),
    'ARl': ('recall', 3, 2),
}
LIMIT = 100  # predictions of an image and class that COCO counts
_THRESHOLD = {'AP50': 0, 'AP75': 5}  # rows of 0.50, 0.55, ..., 0.95


class Curves(NamedTuple):
    """What COCO's evaluation accumulates; -1 where there is no object. T = 10 IoU thresholds, R = 101 recalls,
    K categories, 4 area ranges (all, small, medium, large) and three limits of detections for each image and class: 1,
    10 and, unless another is set, 100."""

    precision: np.ndarray  # (T, R, K, 4, 3) float64
    recall: np.ndarray  # (T, K, 4, 3) float64

    def number(self, name: str, category: int | None = None) -> float | None:
        """Return one of the twelve numbers, over all categories or of one; None when there is nothing to find."""
        kind, area, limit = NUMBERS[name]
        values = getattr(self, kind)[..., area, limit]
        if name in _THRESHOLD:
            values = values[_THRESHOLD[name]][None]
        if category is not None:
            values = values[..., category]
        values = values[values > -1]
        return float(values.mean()) if values.size else None


def make_curves(
    targets: Objects,
    predictions: Objects,
    num_images: int,
    num_categories: int,
    *,
    iou_type: IouType = 'bbox',
    engine: Engine = 'pycocotools',
    max_detections: int = LIMIT,
) -> Curves:
    """Return the curves of the best `max_detections` predictions of each image and class.

    Raises ConfigError when the fast engine is not installed.
    """
    choice = choose_engine(engine)
    run = _fast if choice == 'fast' else _reference
    return run(targets, predictions, num_images, num_categories, iou_type, [1, 10, max_detections])


def choose_engine(engine: Engine) -> Literal['pycocotools', 'fast']:
    """Return the engine that `engine` means here; 'auto' is the fast one where it is installed. Raises ConfigError."""
    installed = importlib.util.find_spec('hotcoco') is not None
    check_choice('CocoAP.engine', engine, ('pycocotools', 'fast', 'auto'))
    why = 'it is the package hotcoco, which is not installed'
    fix = "pip install 'vitdense[fast]', or use the engine 'pycocotools': the numbers are the same"
    check(engine != 'fast' or installed, 'CocoAP.engine', engine, why, fix)
    return 'fast' if installed and engine != 'pycocotools' else 'pycocotools'


class _Evaluation(COCOeval):
    """pycocotools' evaluation, fed from columns instead of its own index."""

    def __init__(
        self, targets: Objects, predictions: Objects, num_images: int, num_categories: int, iou_type: IouType
    ) -> None:
        super().__init__(None, None, iou_type)
        self.params.imgIds = list(range(num_images))
        self.params.catIds = list(range(num_categories))
        self._columns = targets, predictions

    def _prepare(self) -> None:
        self._gts, self._dts = (_by_cell(objects) for objects in self._columns)


def _by_cell(objects: Objects) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the objects by (image, category). Ids count from 1: pycocotools takes 0 for "not matched"."""
    cells: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    columns = [column.tolist() for column in objects[:6]]
    masks = objects.masks or [None] * len(objects.image)
    for row, (image, category, box, area, crowd, score) in enumerate(zip(*columns, strict=True)):
        record = dict(id=row + 1, image_id=image, category_id=category, bbox=box, area=area, score=score)
        record |= dict(iscrowd=int(crowd), ignore=int(crowd), segmentation=masks[row])
        cells[image, category].append(record)
    return cells


def _reference(
    targets: Objects, predictions: Objects, num_images: int, num_categories: int, iou_type: IouType, limits: list[int]
) -> Curves:
    evaluation = _Evaluation(targets, predictions, num_images, num_categories, iou_type)
    evaluation.params.maxDets = limits
    with redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return Curves(evaluation.eval['precision'], evaluation.eval['recall'])


def _fast(
    targets: Objects, predictions: Objects, num_images: int, num_categories: int, iou_type: IouType, limits: list[int]
) -> Curves:
    import hotcoco  # an extra

    def masks(objects: Objects) -> list[dict[str, Any]] | None:
        return list(objects.masks) if iou_type == 'segm' else None

    known = hotcoco.COCO.from_arrays(
        [dict(id=number) for number in range(num_images)],
        [dict(id=number, name=str(number)) for number in range(num_categories)],
        targets.image,
        targets.category,
        targets.boxes,
        area=targets.area,
        iscrowd=targets.crowd,
        segmentation=masks(targets),
    )
    rows = np.column_stack(
        [predictions.image, predictions.boxes, predictions.scores, predictions.category]
    )  # its order, (N, 7)
    results = known.load_res(rows, segmentation=masks(predictions))
    results.update_anns(ids=np.arange(1, len(rows) + 1), area=predictions.area)
    evaluation = hotcoco.COCOeval(known, results, iou_type)
    evaluation.params.max_dets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    return Curves(np.asarray(evaluation.eval['precision']), np.asarray(evaluation.eval['recall']))
