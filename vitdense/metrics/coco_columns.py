"""Objects of many pictures as columns, and as rows of COCO's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vitdense.errors import ConfigError, DataError
from vitdense.ops.masks import areas_of_runs, runs_of_masks
from vitdense.types import Instances, Meta, Target


class Objects(NamedTuple):
    """Objects of many pictures as columns of N rows; the objects of one picture keep their order."""

    image: np.ndarray  # (N,) int64 number of the picture from 0, in the order of image ids
    category: np.ndarray  # (N,) int64 number of the category from 0, in the order of category ids
    boxes: np.ndarray  # (N, 4) float64 x, y, width, height
    area: np.ndarray  # (N,) float64 square pixels
    crowd: np.ndarray  # (N,) bool; False for predictions
    scores: np.ndarray  # (N,) float64; zero for the truth
    masks: Sequence[dict[str, Any]] = ()  # N run-length masks as pycocotools has them; empty for boxes


def columns(found: Instances, masks: bool = False) -> Objects:
    """Return the predictions of one picture as columns; `image` is zero, and `category` the label."""
    boxes = xywh(found.boxes)
    count = len(boxes)
    encoded = encode(found.masks) if masks else ()
    area = areas_of_runs(encoded) if masks else boxes[:, 2] * boxes[:, 3]
    return Objects(
        np.zeros(count, np.int64),
        found.labels.cpu().numpy().astype(np.int64),
        boxes,
        area,
        np.zeros(count, bool),
        found.scores.detach().cpu().numpy().astype(np.float64),
        encoded,
    )


def truth_columns(target: Target, meta: Meta, masks: bool = False) -> Objects:
    """Return the annotated objects of one picture as columns. Raises DataError when masks or finite boxes miss."""
    if masks and target.masks is None:
        raise DataError(
            'there are no masks to compare with',
            where=meta.path or f'image {meta.image_id}',
            why='CocoAP(iou_type="segm") needs the masks of the annotated objects',
            fix='let the data set give masks (CocoDetection: masks=True), or use iou_type="bbox"',
        )
    boxes = xywh(target.boxes)
    count = len(boxes)
    encoded = encode(target.masks) if masks else ()
    area = boxes[:, 2] * boxes[:, 3] if target.area is None else target.area.cpu().numpy().astype(np.float64)
    crowd = np.zeros(count, bool) if target.iscrowd is None else target.iscrowd.cpu().numpy().astype(bool)
    labels = target.labels.cpu().numpy().astype(np.int64)
    if not np.isfinite(boxes).all() or not np.isfinite(area).all():
        raise DataError(
            'an annotated box is not finite',
            where=meta.path or f'image {meta.image_id}',
            why='no prediction can be compared with it',
            fix='correct the annotation; tools/check_data.py lists such boxes',
        )
    return Objects(np.zeros(count, np.int64), labels, boxes, area, crowd, np.zeros(count), encoded)


def xywh(boxes: Tensor) -> np.ndarray:
    """Return (N, 4) xyxy boxes as float64 x, y, width, height, as a COCO file has them.

    Rounded to 9 digits, a difference of two float64 numbers is again the number that a file had.
    """
    corners = boxes.detach().cpu().numpy().astype(np.float64).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners[:, :2], sides.round(9) if boxes.element_size() == 8 else sides], 1)


def encode(masks: Tensor | None) -> list[dict[str, Any]]:
    """Return (N, H, W) bool masks as run lengths. Raises ConfigError when there are none."""
    if masks is None:
        raise ConfigError(
            'the predictions have no masks',
            where='CocoAP.iou_type',
            why="iou_type='segm' compares masks, and this head predicts boxes only",
            fix="use iou_type='bbox', or a head that predicts masks",
        )
    return runs_of_masks(masks)


def join(tables: Sequence[Objects], rows: Sequence[int]) -> Objects:
    """Return the objects of several pictures as one table; `rows` gives the category of each label."""
    if not tables:
        nothing = np.zeros(0, np.int64)
        return Objects(nothing, nothing, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool), np.zeros(0))
    image = np.repeat(np.arange(len(tables)), [len(table.image) for table in tables])
    labels, boxes, area, crowd, scores = (
        np.concatenate([getattr(table, name) for table in tables])
        for name in ('category', 'boxes', 'area', 'crowd', 'scores')
    )
    masks = [mask for table in tables for mask in table.masks]
    return Objects(image, np.array(rows)[labels], boxes, area, crowd, scores, masks)


def category_ids(metainfo: Mapping[str, Any], field: str = 'labels') -> list[int | None]:
    """Return the category id of each label: that of the annotation file, or label + 1 where there is no file.

    None stands for a class that the file does not have.
    """
    given = metainfo.get('category_ids', {}).get(field)
    return list(range(1, len(metainfo['classes'][field]) + 1)) if given is None else list(given)


def results_of(
    found: Instances, image_id: int | str, ids: Sequence[int | None], *, masks: bool = False
) -> list[dict[str, Any]]:
    """Return the predictions of one picture as rows of a COCO results file; `ids` are those of the categories.

    With `masks` the rows hold masks instead of boxes: pycocotools measures objects by their box where there are both.
    Predictions of a class without an id are left out, as the file has no word for them.
    """
    table = columns(found, masks)
    if masks:
        key, values = 'segmentation', [{**mask, 'counts': mask['counts'].decode()} for mask in table.masks]
    else:
        key, values = 'bbox', table.boxes.tolist()
    return [
        {'image_id': image_id, 'category_id': ids[label], key: value, 'score': score}
        for label, value, score in zip(table.category.tolist(), values, table.scores.tolist(), strict=True)
        if ids[label] is not None
    ]
