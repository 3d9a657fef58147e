"""The typed result of a prediction on one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.types import ImageClass, Instances, Prediction, Reconstruction, SemanticMap
from vitdense.visualize import draw
from vitdense.visualize.image_files import write_image
from vitdense.visualize.text import percent


@dataclass(frozen=True)
class Result:
    """An image with the predictions of every head."""

    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    predictions: Mapping[str, Prediction]  # {head: prediction}, on the CPU, in the image's own size
    metainfo: Mapping[str, Any] = field(default_factory=dict)  # classes, palette, head_fields: see `visualize.draw`
    times: Mapping[str, float] = field(default_factory=dict)  # seconds by stage; of a batch: this image's share
    parts: Mapping[str, float] = field(default_factory=dict)  # of the backbone and of each head, unless compiled
    path: str = ''  # where the image came from, when it was a file

    def __getitem__(self, head: str) -> Prediction:
        return self.predictions[head]

    def draw(self, *, alpha: float = 0.5, legend: bool = True, min_score: float = 0.3) -> np.ndarray:
        """Return the image with the predictions on it, (H', W', 3) uint8 RGB; see `vitdense.visualize.draw`."""
        return draw(self.image, self.predictions, self.metainfo, alpha=alpha, legend=legend, min_score=min_score)

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write what `draw(**options)` gives to `path` and return it; folders are made.

        Raises ConfigError when the suffix is no image format, DiskError when the file cannot be written.
        """
        return write_image(self.draw(**options), path)

    def summary(self, *, min_score: float = 0.3) -> dict[str, dict[str, float]]:
        """Return `{head: {class name: number}}`, largest first.

        The number is the share of pixels of a semantic map, the score of an image class, the count of instances of at
        least `min_score` (a whole number); of a
        reconstruction it is `{'error': ...}`, with normalised patches the share of their variance that is missed.
        """
        return {head: self._numbers(head, min_score) for head in self.predictions}

    def objects(self, *, min_score: float = 0.3) -> dict[str, list[dict[str, Any]]]:
        """Return `{head: [{'name', 'class_id', 'score', 'box'}, ...]}` of all heads that detect instances, best first.

        `class_id` is the number of the class from 0; `category_id`, where there is one, that of the annotation
        file. `box` is [left, top, right, bottom] in pixels. Instances below `min_score` are left out.
        """
        heads = [head for head, prediction in self.predictions.items() if isinstance(prediction, Instances)]
        return {head: self._objects(head, min_score) for head in heads}

    def __str__(self) -> str:
        parts = []
        for head, numbers in self.summary().items():
            counted = isinstance(self[head], Instances)
            shown = [f'{name} {value if counted else percent(value)}' for name, value in list(numbers.items())[:5]]
            parts.append(f'{head}: ' + (', '.join(shown) or 'nothing'))
        return '; '.join(parts)

    def _numbers(self, head: str, min_score: float) -> dict[str, float]:
        prediction = self[head]
        if isinstance(prediction, Reconstruction):
            return {'error': float(prediction.error)}
        if isinstance(prediction, ImageClass):
            values = prediction.scores.double().tolist()
        elif isinstance(prediction, SemanticMap):
            values = (prediction.labels.flatten().bincount().double() / max(1, prediction.labels.numel())).tolist()
        else:
            values = prediction.labels[prediction.scores >= min_score].bincount().tolist()
        names = class_names(self.metainfo, head, prediction, len(values))
        ranked = sorted(range(len(values)), key=lambda index: -values[index])
        return {names[index]: values[index] for index in ranked if values[index] > 0}

    def _objects(self, head: str, min_score: float) -> list[dict[str, Any]]:
        instances = self[head]
        num_classes = int(instances.labels.max()) + 1 if len(instances.labels) else 0
        names = class_names(self.metainfo, head, instances, num_classes)
        classes = class_list(self.metainfo, head, names)
        keep = instances.scores >= min_score
        columns = (instances.labels[keep].tolist(), instances.scores[keep].tolist(), instances.boxes[keep].tolist())
        return [{**classes[label], 'score': score, 'box': box} for label, score, box in zip(*columns, strict=True)]


def class_names(metainfo: Mapping[str, Any], head: str, prediction: Prediction, at_least: int) -> list[str]:
    """Return the names of the classes that `head` predicts; a class without a name is called `class NUMBER`."""
    kind = {SemanticMap: 'semantic', ImageClass: 'image_label'}.get(type(prediction), 'labels')
    name = (metainfo.get('head_fields') or {}).get(head, kind)
    names = list((metainfo.get('classes') or {}).get(name) or ())
    return names + [f'class {index}' for index in range(len(names), at_least)]


def class_list(metainfo: Mapping[str, Any], head: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return `[{'name', 'class_id'}, ...]` of the classes of `head`, with the `category_id` where there is one."""
    field = (metainfo.get('head_fields') or {}).get(head, 'labels')
    ids = list((metainfo.get('category_ids') or {}).get(field) or ())
    ids += [None] * (len(names) - len(ids))
    rows = ({'name': name, 'class_id': number, 'category_id': ids[number]} for number, name in enumerate(names))
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
