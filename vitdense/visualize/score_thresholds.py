"""Score thresholds for predicted objects: one for all classes, or one for each class."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np

from vitdense.arguments import check
from vitdense.types import Instances

MIN_SCORE = 0.3  # where a model has no thresholds of its own
MinScore = float | Literal['auto']


def thresholds_of(metainfo: Mapping[str, Any] | None, head: str) -> list[float] | None:
    """Return the score from which on each class of `head` counts; None for a model that has no thresholds.

    `metainfo['operating_points']` has those of best F1 in validation, by head. A class without one has `MIN_SCORE`.
    """
    points = ((metainfo or {}).get('operating_points') or {}).get(head) or {}
    thresholds = points.get('threshold')
    return [MIN_SCORE if each is None else each for each in thresholds] if thresholds else None


def is_kept(instances: Instances, metainfo: Mapping[str, Any] | None, head: str, min_score: MinScore) -> np.ndarray:
    """Return (N,) bool: the objects of at least `min_score`; with 'auto', of at least the threshold of their class."""
    if min_score != 'auto' and (isinstance(min_score, bool) or not isinstance(min_score, Real)):
        check(False, 'min_score', min_score, "it is a number, or 'auto' for the thresholds of the model")
    scores = instances.scores.float().cpu().numpy()
    thresholds = thresholds_of(metainfo, head) if min_score == 'auto' else None
    if thresholds is None:
        return scores >= (MIN_SCORE if min_score == 'auto' else min_score)
    labels = instances.labels.cpu().numpy()
    known = np.append(thresholds, MIN_SCORE).astype(np.float32)
    return scores >= known[np.minimum(labels, len(thresholds))]
