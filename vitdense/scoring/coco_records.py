"""COCO annotation files as arrays, one for each column, for scoring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo
from vitdense.errors import DataError
from vitdense.metrics.coco_columns import Objects
from vitdense.metrics.coco_curves import IouType
from vitdense.ops.coco_numbers import by_id
from vitdense.ops.masks import Size, runs_of


class Numbering(NamedTuple):
    """Row indices of images and categories, in the order of their ids as in pycocotools."""

    images: dict[int | str, int]
    categories: dict[int, int]
    sizes: list[Size | None]  # (H, W) of each image; None where the file has none


def number(arrays: CocoArrays, info: CocoFileInfo) -> tuple[Numbering, np.ndarray]:
    """Return the numbering, and (N,) int64: the image's row for each image of the file."""
    ids = [json.loads(arrays.image_ids[row]) for row in range(len(arrays.sizes))]
    words = any(isinstance(name, str) for name in ids)
    order = sorted(range(len(ids)), key=lambda row: str(ids[row]) if words else ids[row])
    rows = np.empty(len(ids), np.int64)
    rows[order] = np.arange(len(ids))
    sizes = [(height, width) if height else None for height, width in arrays.sizes[order].tolist()]
    return Numbering(by_id([ids[row] for row in order]), by_id(info.category_ids), sizes), rows


def refuse_unknown_sizes(path: Path, arrays: CocoArrays) -> None:
    """Raise DataError when an image with objects has no size."""
    unknown = (arrays.sizes == 0).any(1)
    if (unknown & (np.diff(arrays.starts) > 0)).any():
        raise DataError(
            f'{path.name} does not give the sizes of {int(unknown.sum())} of its {len(unknown)} images',
            where=str(path),
            why='masks cannot be compared: polygons and boxes are drawn in the size of their image',
            fix='write width and height into every record of images, or score boxes (--iou-type bbox)',
        )


def targets_of(arrays: CocoArrays, numbering: Numbering, rows: np.ndarray, iou_type: IouType, path: Path) -> Objects:
    """Return the annotated objects, image after image. Raises DataError for missing masks."""
    image = np.repeat(rows, np.diff(arrays.starts))
    masks: list[dict[str, Any]] = []
    if iou_type == 'segm':
        for row, image_row in enumerate(image.tolist()):
            masks.append(_mask_of_annotation(arrays, row, numbering.sizes[image_row], path))
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


def _mask_of_annotation(arrays: CocoArrays, row: int, size: Size | None, path: Path) -> dict[str, Any]:
    text = arrays.segments[row]
    if not text and not arrays.crowd[row]:
        raise DataError(
            f'annotation {arrays.name(row)} has no segmentation',
            where=str(path),
            why='masks can be compared only with masks',
            fix='score boxes (--iou-type bbox), or give annotations with a segmentation for every object',
        )
    try:
        return runs_of(json.loads(text) if text else ring_of(arrays.boxes[row].tolist()), size)
    except ValueError as error:  # the box of a crowd may be invalid
        raise DataError(
            f'annotation {arrays.name(row)}: {error}', where=str(path), why='it has no mask', fix='correct the file'
        ) from None


def ring_of(box: Sequence[float]) -> list[list[float]]:
    """Return the outline of an x, y, width, height box, in pycocotools' order."""
    x, y, width, height = box
    return [[x, y, x, y + height, x + width, y + height, x + width, y]]
