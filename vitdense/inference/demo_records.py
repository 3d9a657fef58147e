"""Rows of the demo's `results.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdense.errors import DiskError
from vitdense.inference.result import Result, class_list


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
            f'cannot write {path.name}', where=str(path), why=str(error), fix='choose another folder with --out'
        ) from error


def classes_of(metainfo: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return `{head: [{'name', 'class_id'}, ...]}` for every head whose classes have names."""
    classes, fields = metainfo.get('classes') or {}, metainfo.get('head_fields') or {}
    return {head: class_list(metainfo, head, classes[field]) for head, field in fields.items() if classes.get(field)}


def numbers(result: Result, min_score: float) -> dict[str, dict[str, float]]:
    """Return the summary of a result, `{head: {class name: number}}`, rounded; classes of 0 are left out."""
    return _rounded(result.summary(min_score=min_score))


def objects(result: Result, min_score: float) -> dict[str, dict[str, list]]:
    """Return `{'objects': {head: every object}}`, empty for a model without instances."""
    by_head = result.objects(min_score=min_score)
    rounded = {head: [_rounded_object(each) for each in objects] for head, objects in by_head.items()}
    return {'objects': rounded} if rounded else {}


def mean(frames: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean over frames of `{head: {name: number}}`, largest first."""
    sums: dict[str, Counter[str]] = {}
    for frame in frames:
        for head, numbers in frame.items():
            if head not in ('seconds', 'objects'):
                sums.setdefault(head, Counter()).update(numbers)
    return _rounded(
        {head: {name: value / len(frames) for name, value in total.most_common()} for head, total in sums.items()}
    )


def _rounded(summary: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    rounded = {head: {name: round(value, 4) for name, value in numbers.items()} for head, numbers in summary.items()}
    return {head: {name: value for name, value in numbers.items() if value} for head, numbers in rounded.items()}


def _rounded_object(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, 'score': round(row['score'], 4), 'box': [round(side, 1) for side in row['box']]}
