"""Responses of the server, as records that OpenAPI describes."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from vitdense.inference.named_classes import class_list, class_names
from vitdense.inference.result import Result, rounded_object
from vitdense.types import ImageClass, Instances, SemanticMap
from vitdense.visualize.colors import ClassStyle
from vitdense.visualize.score_thresholds import MinScore, thresholds_of

LIKELY = 5  # classes of a whole image


class ErrorRecord(BaseModel):
    """Why a request was refused."""

    detail: str


class ClassRecord(BaseModel):
    """A class of a head."""

    name: str
    class_id: int = Field(description='number of the class, from 0')
    category_id: int | None = Field(None, description='id in the annotation file the model was trained on')
    color: list[int] = Field(description='RGB')
    threshold: float | None = Field(None, description='score of best F1 in validation, where there is one')


class HeadRecord(BaseModel):
    """A head of the model."""

    name: str
    kind: str = Field(description='objects, semantic or image_class')
    classes: list[ClassRecord]


class ModelRecord(BaseModel):
    """The model that is served."""

    name: str
    heads: list[HeadRecord]
    min_score: float = Field(description='of objects of a class without a threshold')
    max_bytes: int = Field(description='of an image or video')
    max_frames: int = Field(description='of a video')


class ObjectRecord(BaseModel):
    """A predicted object."""

    name: str
    class_id: int
    category_id: int | None = None
    score: float
    box: list[float] = Field(description='xyxy in pixels of the image')
    mask: list[int] | None = Field(
        None, description='lengths of runs of pixels outside and inside, in turn, row after row'
    )


class ScoredClass(BaseModel):
    """A class of the whole image."""

    name: str
    score: float


class PredictionRecord(BaseModel):
    """The predictions of one image."""

    size: list[int] = Field(description='(H, W) of the image, upright')
    objects: dict[str, list[ObjectRecord]] = Field(description='by head, best first')
    semantic: dict[str, str] = Field(description='by head: PNG in base64 whose gray values are classes')
    image_class: dict[str, list[ScoredClass]] = Field(description='by head: the most probable classes')
    milliseconds: dict[str, float] = Field(description='by stage; in a batch, the share of this image')
    seconds: float | None = Field(None, description='of a frame, from the start of the video')


def describe(name: str, metainfo: dict[str, Any], kinds: dict[str, str], **limits: Any) -> ModelRecord:
    """Return the record of a model whose heads have these kinds (a field of the data sets each)."""
    heads = []
    for head, field in kinds.items():
        names = list((metainfo.get('classes') or {}).get(field) or ())
        colors = ClassStyle.of(metainfo, field, at_least=len(names)).colors.tolist()
        rows = class_list(metainfo, head, names)
        thresholds = thresholds_of(metainfo, head) or [None] * len(rows)
        columns = zip(rows, colors, thresholds, strict=True)
        records = [ClassRecord(**row, color=color, threshold=threshold) for row, color, threshold in columns]
        kind = {'semantic': 'semantic', 'image_label': 'image_class'}.get(field, 'objects')
        heads.append(HeadRecord(name=head, kind=kind, classes=records))
    return ModelRecord(name=name, heads=heads, **limits)


def record_of(result: Result, *, min_score: MinScore, seconds: float | None = None) -> PredictionRecord:
    """Return the record of a result, with objects of at least `min_score` ('auto': the thresholds of the model)."""
    kept = result.filter(min_score=min_score)
    record = PredictionRecord(
        size=list(result.size),
        objects={},
        semantic={},
        image_class={},
        milliseconds={stage: round(1000 * value, 2) for stage, value in {**result.times, **result.parts}.items()},
        seconds=seconds,
    )
    for head, prediction in kept.predictions.items():
        if isinstance(prediction, Instances):
            record.objects[head] = [_object(each._asdict()) for each in kept.only(head)]
        elif isinstance(prediction, SemanticMap):
            record.semantic[head] = _png(prediction.labels.numpy())
        elif isinstance(prediction, ImageClass):
            names = class_names(result.metainfo, head, prediction, len(prediction.scores))
            scores, rows = prediction.scores.sort(descending=True)
            best = list(zip(rows.tolist(), scores.tolist(), strict=True))[:LIKELY]
            record.image_class[head] = [ScoredClass(name=names[row], score=round(score, 4)) for row, score in best]
    return record


def _object(each: dict[str, Any]) -> ObjectRecord:
    mask = None if each['mask'] is None else runs(each['mask'])
    return ObjectRecord(**{**rounded_object(each), 'mask': mask})


def runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of a (H, W) bool mask, row after row; the first is outside, and may be 0."""
    values = np.concatenate([[False], mask.ravel()])
    edges = np.flatnonzero(values[1:] != values[:-1])
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def _png(labels: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(labels.astype(np.uint8)).save(content, format='PNG', compress_level=1)
    return base64.b64encode(content.getvalue()).decode()
