"""The typed result of a prediction on one image."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from vitdense.errors import ConfigError, PredictionError
from vitdense.inference.named_classes import KINDS, class_list, class_names
from vitdense.inference.windowed_image import at_preview
from vitdense.ops.packed_masks import PackedMasks
from vitdense.types import ImageClass, Instances, Prediction, Reconstruction, SemanticMap
from vitdense.visualize import draw
from vitdense.visualize.image_files import write_image
from vitdense.visualize.score_thresholds import MinScore, is_kept
from vitdense.visualize.text import percent

SHOWN_HEIGHT = 640  # pixels of a result in a notebook
Kind = TypeVar('Kind', ImageClass, SemanticMap, Instances)


class DetectedObject(NamedTuple):
    """One object of an image."""

    name: str
    class_id: int  # from 0
    score: float
    box: tuple[float, float, float, float]  # xyxy in pixels
    category_id: int | None = None  # of the annotation file that the model was trained on
    mask: np.ndarray | None = None  # (H, W) bool
    track_id: int | None = None  # of an object that is followed through a video


@dataclass(frozen=True, repr=False)
class Result:
    """An image with the predictions of every head.

    `result[head]` is all that a head predicts. `boxes`, `labels`, `names`, `scores` and `masks`, iteration, `len` and
    the conversions take the objects of at least `min_score`, best first. They need a model with one head of the kind;
    with several, `only(head)` chooses one.
    """

    image: np.ndarray  # (H, W, 3) uint8 RGB, upright; of a file that was read in windows every `step`-th row and column
    predictions: Mapping[str, Prediction]  # {head: prediction}, on the CPU, in the image's own size
    metainfo: Mapping[str, Any] = field(default_factory=dict)  # classes, palette, head_fields: see `visualize.draw`
    times: Mapping[str, float] = field(default_factory=dict)  # seconds by stage; of a batch: this image's share
    parts: Mapping[str, float] = field(default_factory=dict)  # of the backbone and of each head, unless compiled
    path: str = ''  # where the image came from, when it was a file
    min_score: MinScore = 'auto'  # or one score for all classes; see `visualize.score_thresholds`
    size: tuple[int, int] = ()  # (H, W) of the image that was predicted; default: that of `image`
    step: int = 1

    def __post_init__(self) -> None:
        if not self.size:
            object.__setattr__(self, 'size', tuple(self.image.shape[:2]))

    def __getitem__(self, head: str) -> Prediction:
        if head not in self.predictions:
            raise KeyError(f'{head!r}: the heads are {", ".join(self.predictions)}')
        return self.predictions[head]

    # --------------------------------------------------------------------------------------------- typed access

    @property
    def boxes(self) -> Tensor:
        """(N, 4) float32 xyxy in pixels of the image."""
        return self._objects_kept().boxes

    @property
    def scores(self) -> Tensor:
        """(N,) float32 in [0, 1]."""
        return self._objects_kept().scores

    @property
    def labels(self) -> Tensor:
        """(N,) int64 classes of the objects, from 0."""
        return self._objects_kept().labels

    @property
    def names(self) -> list[str]:
        """The class names of the objects."""
        return [each.name for each in self._detected(with_masks=False)]

    @property
    def masks(self) -> Tensor | None:
        """(N, H, W) bool; None for a model that predicts boxes only."""
        masks = self._objects_kept().masks
        return None if masks is None else PackedMasks.of(masks).tensor()

    @property
    def semantic(self) -> Tensor:
        """(H, W) class of every pixel, from 0."""
        return self._only(SemanticMap)[1].labels

    @property
    def image_class(self) -> str:
        """The name of the most probable class of the image."""
        head, prediction = self._only(ImageClass)
        return class_names(self.metainfo, head, prediction, len(prediction.scores))[int(prediction.scores.argmax())]

    def __len__(self) -> int:
        """Return the number of objects; 0 for a model that detects none."""
        return sum(len(self._kept(head, None).scores) for head in self._heads(Instances))

    def __bool__(self) -> bool:
        return len(self) > 0 or not self._heads(Instances)

    def __iter__(self) -> Iterator[DetectedObject]:
        return self._detected(with_masks=True)

    def only(self, *heads: str) -> Result:
        """Return the result with the predictions of these heads."""
        return replace(self, predictions={head: self[head] for head in heads})

    def filter(self, *, classes: Collection[str] | None = None, min_score: MinScore | None = None) -> Result:
        """Return the result with fewer objects: of these class names, of at least this score.

        Raises ConfigError for a class that no detecting head of the model has.
        """
        threshold = self.min_score if min_score is None else min_score
        known = {head: self._names(head) for head in self._heads(Instances)}
        if classes is not None:
            _refuse_unknown_classes(classes, {name for names in known.values() for name in names})
        kept = dict(self.predictions)
        for head, names in known.items():
            instances = self._kept(head, threshold)
            if classes is not None:
                wanted = [row for row, label in enumerate(instances.labels.tolist()) if names[label] in classes]
                instances = instances.select(np.array(wanted, np.int64))
            kept[head] = instances
        return replace(self, predictions=kept, min_score=threshold)

    # ------------------------------------------------------------------------------------- images and conversion

    def draw(self, *, alpha: float = 0.5, legend: bool = True, min_score: MinScore | None = None) -> np.ndarray:
        """Return the image with the predictions on it, (H', W', 3) uint8 RGB; see `vitdense.visualize.draw`."""
        threshold = self.min_score if min_score is None else min_score
        shown = self.predictions
        if self.step > 1:
            shown = at_preview(self._above(threshold).predictions, self.step)
        return draw(self.image, shown, self.metainfo, alpha=alpha, legend=legend, min_score=threshold)

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write what `draw(**options)` gives to `path` and return it; folders are made.

        Raises ConfigError when the suffix is no image format, DiskError when the file cannot be written.
        """
        return write_image(self.draw(**options), path)

    def summary(self, *, min_score: MinScore | None = None) -> dict[str, dict[str, float]]:
        """Return `{head: {class name: number}}`, largest first.

        The number is the share of pixels of a semantic map, the score of an image class, the count of instances of at
        least `min_score` (a whole number); of a reconstruction it is `{'error': ...}`, with normalised patches the
        share of their variance that is missed.
        """
        return {head: self._numbers(head, min_score) for head in self.predictions}

    def objects(self, *, min_score: MinScore | None = None) -> dict[str, list[dict[str, Any]]]:
        """Return `{head: [{'name', 'class_id', 'score', 'box'}, ...]}` of all heads that detect instances, best first.

        `class_id` is the number of the class from 0; `category_id`, where there is one, that of the annotation
        file. `box` is [left, top, right, bottom] in pixels. Instances below `min_score` are left out.
        """
        rows = {}
        for head in self._heads(Instances):
            rows[head] = [_as_row(each) for each in self._each(head, min_score, with_masks=False)]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return file, size (H, W), `summary()` as `heads` and `objects()`: plain Python values, rounded."""
        objects = {head: [rounded_object(row) for row in rows] for head, rows in self.objects().items()}
        row = {'file': self.path, 'size': list(self.size), 'heads': rounded(self.summary())}
        return row | ({'objects': objects} if objects else {})

    def to_json(self, **options: Any) -> str:
        """Return `to_dict()` as JSON; `options` go to `json.dumps`."""
        return json.dumps(self.to_dict(), **options)

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Return the objects as rows of COCO's results format, masks as run lengths.

        `image_id` is by default the name of the image file without its suffix, as a number where it is one.
        `category_id` is that of the annotation file the model was trained on, else the class from 0. Raises ConfigError
        unless one head detects objects.
        """
        if image_id is None:
            stem = Path(self.path).stem
            image_id = int(stem) if stem.isascii() and stem.isdecimal() else stem
        head, _ = self._only(Instances)
        masks = self._kept(head, None).masks
        runs = None if masks is None else PackedMasks.of(masks).runs
        rows: list[dict[str, Any]] = []
        for row, each in enumerate(self._each(head, None, with_masks=False)):
            left, top, right, bottom = each.box
            category = each.class_id if each.category_id is None else each.category_id
            box = [left, top, right - left, bottom - top]
            rows.append({'image_id': image_id, 'category_id': category, 'bbox': box, 'score': each.score})
            if runs is not None:
                rows[-1]['segmentation'] = {**runs[row], 'counts': runs[row]['counts'].decode()}
        return rows

    def to_supervision(self) -> Any:
        """Return the objects as `supervision.Detections`. Raises ImportError where that package is missing."""
        try:
            supervision = importlib.import_module('supervision')
        except ImportError:
            raise ImportError('to_supervision needs the package supervision: pip install supervision') from None
        masks = self.masks
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            mask=None if masks is None else masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={'class_name': np.array(self.names, dtype=str)},
        )

    def __str__(self) -> str:
        parts = []
        for head, numbers in self.summary().items():
            counted = isinstance(self[head], Instances)
            shown = [f'{name} {value if counted else percent(value)}' for name, value in list(numbers.items())[:5]]
            parts.append(f'{head}: ' + (', '.join(shown) or 'nothing'))
        return '; '.join(parts)

    def __repr__(self) -> str:
        height, width = self.size
        file = f'{self.path!r}, ' if self.path else ''
        return f'Result({file}{width} x {height} pixels; {self})'

    def _repr_png_(self) -> bytes:
        """Return the drawn image for a notebook."""
        from PIL import Image

        image, content = Image.fromarray(self.draw()), io.BytesIO()
        image.thumbnail((2 * SHOWN_HEIGHT, SHOWN_HEIGHT))
        image.save(content, format='PNG')
        return content.getvalue()

    # ----------------------------------------------------------------------------------------------- selection

    def _heads(self, kind: type) -> list[str]:
        return [head for head, prediction in self.predictions.items() if isinstance(prediction, kind)]

    def _only(self, kind: type[Kind]) -> tuple[str, Kind]:
        """Return the one head of a kind, and its prediction. Raises PredictionError where there is none, or several."""
        heads = self._heads(kind)
        if len(heads) != 1:
            what = KINDS[kind][0]
            known = {head: KINDS.get(type(each), (f'result[{head!r}]',) * 2) for head, each in self.predictions.items()}
            raise PredictionError(
                f'several heads of the model predict {what}' if heads else f'the model predicts no {what}',
                where='result',
                why=f'its heads predict {", ".join(f"{name} ({head})" for head, (name, _) in known.items())}',
                fix=f"choose one: result.only('{heads[0]}')"
                if heads
                else f'use {" or ".join(dict.fromkeys(where for _, where in known.values()))}',
            )
        return heads[0], self[heads[0]]

    def _above(self, min_score: MinScore) -> Result:
        """Return the result with the objects of at least `min_score` only."""
        kept = {head: self._kept(head, min_score) for head in self._heads(Instances)}
        return replace(self, predictions={**self.predictions, **kept})

    def _objects_kept(self) -> Instances:
        return self._kept(self._only(Instances)[0], None)

    def _kept(self, head: str, min_score: MinScore | None) -> Instances:
        """Return the instances of at least `min_score`."""
        instances: Instances = self[head]
        least = self.min_score if min_score is None else min_score
        return instances.select(is_kept(instances, self.metainfo, head, least))

    def _detected(self, *, with_masks: bool) -> Iterator[DetectedObject]:
        for head in self._heads(Instances):
            yield from self._each(head, None, with_masks=with_masks)

    def _each(self, head: str, min_score: MinScore | None, *, with_masks: bool) -> Iterator[DetectedObject]:
        instances, classes = self._kept(head, min_score), class_list(self.metainfo, head, self._names(head))
        columns = (instances.labels.tolist(), instances.scores.tolist(), instances.boxes.tolist())
        for row, (label, score, box) in enumerate(zip(*columns, strict=True)):
            mask = np.asarray(instances.masks[row]) if with_masks and instances.masks is not None else None
            names, track = classes[label], None if instances.track_ids is None else int(instances.track_ids[row])
            ids = names.get('category_id'), mask, track if track != -1 else None
            yield DetectedObject(names['name'], label, score, tuple(box), *ids)

    def _names(self, head: str) -> list[str]:
        """Return the names of the classes of a head that detects objects."""
        labels = self[head].labels
        return class_names(self.metainfo, head, self[head], int(labels.max()) + 1 if len(labels) else 0)

    def _numbers(self, head: str, min_score: MinScore | None) -> dict[str, float]:
        prediction = self[head]
        if isinstance(prediction, Reconstruction):
            return {'error': float(prediction.error)}
        if isinstance(prediction, ImageClass):
            values = prediction.scores.double().tolist()
        elif isinstance(prediction, SemanticMap):
            values = _shares(prediction.labels)
        else:
            values = self._kept(head, min_score).labels.bincount().tolist()
        names = class_names(self.metainfo, head, prediction, len(values))
        ranked = sorted(range(len(values)), key=lambda index: -values[index])
        return {names[index]: values[index] for index in ranked if values[index] > 0}


def _shares(labels: Tensor) -> list[float]:
    """Return the share of each label, some rows at a time: numbers to count take eight bytes."""
    most = int(labels.max()) + 1 if labels.numel() else 0
    rows = max(1, 2**24 // max(1, labels.shape[1]))
    counts = sum((part.flatten().bincount(minlength=most).double() for part in labels.split(rows)), start=0.0)
    return (counts / max(1, labels.numel())).tolist() if most else []


def rounded(summary: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return a summary with four digits, without what is 0 then."""
    numbers = {head: {name: round(value, 4) for name, value in row.items()} for head, row in summary.items()}
    return {head: {name: value for name, value in row.items() if value} for head, row in numbers.items()}


def _as_row(each: DetectedObject) -> dict[str, Any]:
    category = {} if each.category_id is None else {'category_id': each.category_id}
    category |= {} if each.track_id is None else {'track_id': each.track_id}
    return {'name': each.name, 'class_id': each.class_id, **category, 'score': each.score, 'box': list(each.box)}


def rounded_object(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of an object with a score of four digits and a box of one."""
    return {**row, 'score': round(row['score'], 4), 'box': [round(side, 1) for side in row['box']]}


def _refuse_unknown_classes(classes: Collection[str], known: Collection[str]) -> None:
    unknown = [name for name in ([classes] if isinstance(classes, str) else classes) if name not in known]
    if unknown or isinstance(classes, str):
        raise ConfigError(
            f'classes={classes!r} are not all classes of the model',
            where='result.filter',
            why=f'the classes are {", ".join(sorted(known))}' if unknown else 'a list of names is needed',
            fix="give a list of names: classes=['car']",
        )
