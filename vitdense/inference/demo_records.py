"""Rows of the demo's `results.json`, and its objects as a COCO file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vitdense.errors import DiskError
from vitdense.inference.named_classes import class_list
from vitdense.inference.result import rounded
from vitdense.storage.atomic import disk_fix

if TYPE_CHECKING:
    from vitdense.inference.predictor import Predictor


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as UTF-8; a file name that is not UTF-8 is escaped as `os.fsencode` understands it.

    Raises DiskError.
    """
    # a byte that is no UTF-8 is a lone surrogate in Python, for which backslashreplace writes the escape of JSON
    data = json.dumps(content, ensure_ascii=False, indent=1).encode('utf-8', 'backslashreplace')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise DiskError(
            f'cannot write {path.name}',
            where=str(path),
            why=str(error),
            fix=disk_fix(error, 'choose another folder with --out'),
        ) from error


def classes_of(metainfo: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return `{head: [{'name', 'class_id'}, ...]}` for every head whose classes have names."""
    classes, fields = metainfo.get('classes') or {}, metainfo.get('head_fields') or {}
    return {head: class_list(metainfo, head, classes[field]) for head, field in fields.items() if classes.get(field)}


def precision_of(predictor: Predictor) -> str:
    """Return the number format in which the network computes; an exported graph has its own."""
    from vitdense.export.graph_network import GraphNetwork

    if isinstance(predictor.model.network, GraphNetwork):
        return 'that of the exported graph'
    return str(predictor.model.amp or torch.float32).removeprefix('torch.')


class CocoFile:
    """Images and their predicted objects, as a COCO annotation file in which each object has a score.

    Names of files are below the folder that has them all, `info.folder`.
    """

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file: str, size: Sequence[int], objects: Sequence[dict[str, Any]]) -> None:
        """Add an image of (H, W) `size` and its objects in COCO's results format."""
        number, (height, width) = len(self.images) + 1, size
        self.images.append({'id': number, 'file_name': file, 'height': height, 'width': width})
        for row in objects:
            ids = {'id': len(self.annotations) + 1, 'image_id': number}
            self.annotations.append({**row, **ids, 'area': row['bbox'][2] * row['bbox'][3], 'iscrowd': 0})

    def content(self, classes: Mapping[str, Sequence[Mapping[str, Any]]], heads: Collection[str]) -> dict[str, Any]:
        """Return the content of the file; `classes` are as in `results.json`, `heads` are those that detect objects."""
        rows = [row for head in heads for row in classes.get(head, ())]
        names = {row.get('category_id', row['class_id']): row['name'] for row in rows}
        used = {row['category_id'] for row in self.annotations}
        categories = [{'id': number, 'name': names.get(number, str(number))} for number in sorted({*names, *used})]
        folder = os.path.commonpath(
            [os.path.dirname(os.path.abspath(row['file_name'])) for row in self.images] or ['/']
        )
        images = [row | {'file_name': os.path.relpath(row['file_name'], folder)} for row in self.images]
        return {'info': {'folder': folder}, 'images': images, 'annotations': self.annotations, 'categories': categories}


def mean(frames: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean over frames of `{head: {name: number}}`, largest first."""
    sums: dict[str, Counter[str]] = {}
    for frame in frames:
        for head, numbers in frame.items():
            if head not in ('seconds', 'objects', 'counts'):
                sums.setdefault(head, Counter()).update(numbers)
    return rounded(
        {head: {name: value / len(frames) for name, value in total.most_common()} for head, total in sums.items()}
    )
