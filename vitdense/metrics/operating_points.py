"""Score thresholds of a trained model: the best F1 of each class in validation, and a temperature of its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as run_lengths
from scipy.optimize import minimize_scalar

from vitdense.metrics.coco_columns import Objects
from vitdense.ops.temperature import at_temperature, logits_of

IOU = 0.5  # from which on a prediction is that of an object
BINS = 15  # of the calibration error


class OperatingPoint(NamedTuple):
    """The threshold of a class, and what it gives in validation."""

    threshold: float  # scores from here on count
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def best_f1(scores: np.ndarray, hits: np.ndarray, num_targets: int) -> OperatingPoint | None:
    """Return the threshold with the largest F1 of predictions of one class; None without a prediction that is right.

    `scores` and `hits` (bool) are (N,), `num_targets` is how many there are to find. The threshold lies halfway between
    the scores that it separates.
    """
    if not num_targets or not hits.any():
        return None
    order = np.argsort(-scores, kind='stable')
    ranked, true_positives = scores[order], np.cumsum(hits[order])
    last = np.append(ranked[1:] < ranked[:-1], True)  # equal scores are on one side of a threshold
    f1 = np.where(last, 2 * true_positives / (np.arange(1, len(ranked) + 1) + num_targets), -1)
    index = int(f1.argmax())
    below = ranked[index + 1] if index + 1 < len(ranked) else 0.0
    threshold = (float(ranked[index]) + float(below)) / 2
    return OperatingPoint(
        threshold, float(true_positives[index] / (index + 1)), float(true_positives[index] / num_targets)
    )


def match(targets: Objects, predictions: Objects) -> tuple[np.ndarray, np.ndarray]:
    """Return which predictions are those of an object, and which count, both (N,) bool.

    Within an image and class every prediction, best first, takes the free object that it overlaps most, from an IoU of
    0.5 on, as in COCO's evaluation. Predictions on crowds do not count.
    """
    hits, counted = np.zeros(len(predictions.image), bool), np.ones(len(predictions.image), bool)
    theirs = _cells(targets)
    for cell, rows in _cells(predictions).items():
        objects = theirs.get(cell, np.zeros(0, np.int64))
        if not len(objects):
            continue
        rows = rows[np.argsort(-predictions.scores[rows], kind='stable')]
        crowd = targets.crowd[objects]
        ious = run_lengths.iou(_shapes(predictions, rows), _shapes(targets, objects), crowd.tolist())
        free = ~crowd
        for row, overlaps in zip(rows, ious, strict=True):
            best = np.where(free, overlaps, -1.0).argmax()
            if free[best] and overlaps[best] >= IOU:
                hits[row], free[best] = True, False
            elif (overlaps[crowd] >= IOU).any():
                counted[row] = False
    return hits, counted


def fit_temperature(scores: np.ndarray, hits: np.ndarray) -> float:
    """Return the temperature T for which `sigmoid(logit(score) / T)` fits the hits best (Guo et al. 2017, section 4.2).

    The mean negative log-likelihood is smallest there; 1 without predictions of both kinds.
    """
    if hits.all() or not hits.any():
        return 1.0
    logits = logits_of(torch.from_numpy(scores.astype(np.float64))).numpy()

    def nll(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - scaled * hits).mean())

    return float(np.exp(minimize_scalar(nll, bounds=(-3, 3), method='bounded').x))


def calibrated(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return the scores at a temperature."""
    return at_temperature(torch.from_numpy(scores.astype(np.float64)), temperature).numpy()


def calibration_error(scores: np.ndarray, hits: np.ndarray) -> float:
    """Return the expected calibration error: mean distance of score and share of hits over 15 ranges of the score."""
    index = np.clip(np.ceil(scores * BINS).astype(int), 1, BINS) - 1
    gaps = np.bincount(index, scores - hits, BINS)
    return float(np.abs(gaps).sum() / max(len(scores), 1))


def describe_points(scores: np.ndarray, hits: np.ndarray, labels: np.ndarray, counts: Sequence[int]) -> dict[str, Any]:
    """Return what a model folder holds about one head, by class: `threshold`, `precision` and `recall` (None without a
    prediction that is right); and the `temperature` of all scores, with the calibration error `ece` before and after.
    The temperature is 1 where the fitted one does not lower that error.

    `scores`, `hits` and `labels` are (N,), `counts` the number of targets of each class.
    """
    points = [best_f1(scores[labels == label], hits[labels == label], count) for label, count in enumerate(counts)]
    temperature = fit_temperature(scores, hits)
    errors = [calibration_error(each, hits) for each in (scores, calibrated(scores, temperature))]
    if errors[1] >= errors[0]:  # the likelihood has its maximum elsewhere
        temperature, errors = 1.0, [errors[0], errors[0]]
    columns = {
        name: [None if point is None else round(point._asdict()[name], 4) for point in points]
        for name in OperatingPoint._fields
    }
    return {**columns, 'temperature': round(temperature, 4), 'ece': [round(error, 4) for error in errors]}


def _cells(objects: Objects) -> dict[tuple[int, int], np.ndarray]:
    """Return the rows of the objects by (image, category)."""
    keys, inverse = np.unique(np.stack([objects.image, objects.category]), axis=1, return_inverse=True)
    order = np.argsort(inverse, kind='stable')
    ends = np.cumsum(np.bincount(inverse, minlength=keys.shape[1]))
    parts = np.split(order, ends[:-1]) if keys.shape[1] else []
    return {tuple(key): rows for key, rows in zip(keys.T.tolist(), parts, strict=True)}


def _shapes(objects: Objects, rows: np.ndarray) -> Any:
    return [objects.masks[row] for row in rows] if objects.masks else objects.boxes[rows]
