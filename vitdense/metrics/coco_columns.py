"""Objects of many images as one array for each column, and as rows of COCO's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitdense.arguments import check
from vitdense.ops.masks import areas_of_runs, runs_of_masks
from vitdense.types import Instances, Target


class Objects(NamedTuple):
    """Objects of many images as columns of N rows; the objects of one image keep their order."""

    image: np.ndarray  # (N,) int64 number of the image from 0, in the order of image ids
    category: np.ndarray  # (N,) int64 number of the category from 0, in the order of category ids
    boxes: np.ndarray  # (N, 4) float64 x, y, width, height
    area: np.ndarray  # (N,) float64 square pixels
    crowd: np.ndarray  # (N,) bool; False for predictions
    scores: np.ndarray  # (N,) float64; zero for targets
    masks: Sequence[dict[str, Any]] = ()  # N run-length masks as pycocotools has them; empty for boxes


def target_columns(targets: Sequence[Target], masks: Sequence[Sequence[dict[str, Any]]] = ()) -> Objects:
    """Return the annotated objects of several images, with their labels as categories; `masks` are run lengths."""
    image, boxes, labels = _stack(targets)
    boxes[:, 2:] = boxes[:, 2:].round(9)  # a difference of two float64 numbers is again the number that a file had
    count = len(image)
    known = [target for target in targets if target.area is not None]
    area = boxes[:, 2] * boxes[:, 3]
    if known:
        rows = np.repeat([target.area is not None for target in targets], [len(target.labels) for target in targets])
        area[rows] = _numbers([target.area for target in known])
    crowd = np.zeros(count, bool)
    if any(target.iscrowd is not None for target in targets):
        no_crowds = (torch.zeros(len(target.labels), dtype=torch.bool) for target in targets)
        crowd = torch.cat(
            [t.iscrowd if t.iscrowd is not None else no for t, no in zip(targets, no_crowds, strict=True)]
        ).numpy()
    return Objects(
        image, labels, boxes, area, crowd.astype(bool), np.zeros(count), [run for runs in masks for run in runs]
    )


def prediction_columns(
    predictions: Sequence[Instances], masks: Sequence[Sequence[dict[str, Any]]] | None = None
) -> Objects:
    """Return the predictions for several images, with their labels as categories.

    `masks` are run lengths, where objects are measured by their masks.
    """
    image, boxes, labels = _stack(predictions)
    runs = [] if masks is None else [run for runs in masks for run in runs]
    area = boxes[:, 2] * boxes[:, 3] if masks is None else areas_of_runs(runs)
    scores = _numbers([instances.scores for instances in predictions])
    return Objects(image, labels, boxes, area, np.zeros(len(image), bool), scores, runs)


def _stack(records: Sequence[Target | Instances]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of the image (N,), the boxes (N, 4) as x, y, width, height, and the labels (N,)."""
    image = np.repeat(np.arange(len(records)), [len(record.labels) for record in records])
    boxes = _numbers([record.boxes for record in records]).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    labels = _numbers([record.labels for record in records], torch.int64)
    return image, boxes, labels


def _numbers(fields: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> np.ndarray:
    """Return tensors, one after the other, as an array of its own."""
    if not fields:
        return torch.zeros(0, dtype=dtype).numpy()
    return torch.cat(list(fields)).to(dtype, copy=True).numpy()


def encode(masks: Tensor | None) -> list[dict[str, Any]]:
    """Return (N, H, W) bool masks as run lengths. Raises ConfigError when there are none."""
    why = 'the predictions have no masks: this head predicts boxes only'
    fix = "use iou_type='bbox', or a head that predicts masks"
    check(masks is not None, 'CocoAP.iou_type', 'segm', why, fix)
    return runs_of_masks(masks)


def merge(shares: Sequence[Objects], orders: Sequence[np.ndarray], rows: Sequence[int]) -> Objects:
    """Return the objects of several ranks as one table, image after image.

    `orders[i]` are the final numbers of the images of rank i, and `rows` the category of each label.
    """
    image = np.concatenate([order[share.image] for share, order in zip(shares, orders, strict=True)]).astype(np.int64)
    order = np.argsort(image, kind='stable')
    labels, boxes, area, crowd, scores = (
        np.concatenate([getattr(share, name) for share in shares])[order]
        for name in ('category', 'boxes', 'area', 'crowd', 'scores')
    )
    masks = [mask for share in shares for mask in share.masks]
    return Objects(
        image[order], np.array(rows)[labels], boxes, area, crowd, scores, [masks[row] for row in order] if masks else ()
    )


def category_ids(metainfo: Mapping[str, Any], field: str = 'labels') -> list[int | None]:
    """Return the category id of each label: that of the annotation file, or label + 1 where there is no file.

    None stands for a class that the file does not have.
    """
    ids = metainfo.get('category_ids', {}).get(field)
    return list(range(1, len(metainfo['classes'][field]) + 1)) if ids is None else list(ids)


def results_of(
    predictions: Instances, image_id: int | str, ids: Sequence[int | None], *, masks: bool = False
) -> list[dict[str, Any]]:
    """Return the predictions of one image as rows of a COCO results file; `ids` are those of the categories.

    With `masks` the rows hold masks instead of boxes: pycocotools measures objects by their box where there are both.
    Predictions of a class without an id are left out.
    """
    table = prediction_columns([predictions], [encode(predictions.masks)] if masks else None)
    if masks:
        key, values = 'segmentation', [{**mask, 'counts': mask['counts'].decode()} for mask in table.masks]
    else:
        key, values = 'bbox', table.boxes.tolist()
    return [
        {'image_id': image_id, 'category_id': ids[label], key: value, 'score': score}
        for label, value, score in zip(table.category.tolist(), values, table.scores.tolist(), strict=True)
        if ids[label] is not None
    ]
