"""Objects followed through the frames of a video, and counted across a line or in an area.

The tracker is that of the package `trackers` (extra `track`), lines and areas are those of `supervision`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch

from vitdense.errors import ConfigError, ResourceError
from vitdense.inference.result import Result
from vitdense.types import Instances
from vitdense.visualize.text import draw_label, font_size

BEGIN_SCORE = 0.3  # from which an object begins a track, unless a score is given
MIN_SCORE = 0.1  # objects of lower scores continue no track
TRAIL = 30  # positions of an object that are drawn
LINE_COLOR = (255, 255, 255)


class Tracking(NamedTuple):
    """How objects are followed: the tracker, and where they are counted, in pixels of the video."""

    tracker: Literal['bytetrack', 'ocsort', 'sort'] = 'bytetrack'
    line: tuple[float, float, float, float] | None = None  # x, y of two points
    area: Sequence[float] | None = None  # x, y of the corners


class VideoTracker:
    """Gives the objects of successive results of one video `track_ids`, and draws trails and counts in the images.

    Each class has a tracker of its own; objects of at least `min_score` begin a track, those of at least 0.1 continue
    one. Objects without a track get -1. Raises ResourceError where the packages are missing, ConfigError for a model
    without exactly one head that detects objects.
    """

    def __init__(self, options: Tracking, *, fps: float, min_score: float | Literal['auto'] = 'auto') -> None:
        try:
            import supervision
            import trackers
        except ImportError as error:
            raise ResourceError(
                'the packages for tracking are not installed',
                where='--track',
                why=str(error),
                fix="pip install 'vitdense[track]'",
            ) from error
        kinds = {'bytetrack': trackers.ByteTrackTracker, 'ocsort': trackers.OCSORTTracker, 'sort': trackers.SORTTracker}
        self._supervision, self._kind, self._name = supervision, kinds[options.tracker], options.tracker
        self._fps, self._least = fps, BEGIN_SCORE if min_score == 'auto' else min_score
        self._trackers: dict[int, Any] = {}
        self._ids: dict[tuple[int, int], int] = {}
        self._trails: dict[int, deque[tuple[int, int]]] = defaultdict(lambda: deque(maxlen=TRAIL))
        self._line, self._area = options.line, options.area
        self._zones(supervision)
        self._inside: set[int] = set()
        self._now_inside = 0

    def _zones(self, supervision: Any) -> None:
        center = [supervision.Position.CENTER]
        if self._line is not None:
            start, end = (supervision.Point(*self._line[at : at + 2]) for at in (0, 2))
            self._line_zone = supervision.LineZone(start, end, triggering_anchors=center)
        if self._area is not None:
            corners = np.array(self._area, np.int64).reshape(-1, 2)
            self._area_zone = supervision.PolygonZone(corners, triggering_anchors=center)

    def update(self, result: Result) -> Result:
        """Return the result of the next frame with `track_ids`, and with the trails of its objects in the image."""
        heads = [head for head, prediction in result.predictions.items() if isinstance(prediction, Instances)]
        if len(heads) != 1:
            raise ConfigError(
                f'{len(heads)} heads of the model detect objects',
                where='--track',
                why=f'the heads are {", ".join(result.predictions)}',
                fix='track with a model that has one head for detection',
            )
        instances: Instances = result[heads[0]]
        ids = self._assign(instances)
        self._count(instances, ids)
        image = self._with_trails(result.image, instances, ids)
        predictions = {**result.predictions, heads[0]: instances._replace(track_ids=torch.from_numpy(ids))}
        return replace(result, image=image, predictions=predictions)

    def _assign(self, instances: Instances) -> np.ndarray:
        """Return (N,) int64: the track of each object, -1 for none."""
        ids = np.full(len(instances.scores), -1, np.int64)
        labels, scores = instances.labels.numpy(), instances.scores.numpy()
        for label in sorted({*self._trackers, *labels[scores >= self._least].tolist()}):
            if label not in self._trackers:
                self._trackers[label] = self._make_tracker()
            rows = np.flatnonzero((labels == label) & (scores >= MIN_SCORE))
            tracked = self._trackers[label].update(self._detections(instances, rows))
            if not len(tracked):
                continue
            for row, number in zip(tracked.data['row'], tracked.tracker_id, strict=True):
                if number >= 0:
                    ids[row] = self._ids.setdefault((label, int(number)), len(self._ids) + 1)
        return ids

    def _make_tracker(self) -> Any:
        begin = {'track_activation_threshold': self._least} if self._name != 'ocsort' else {}
        high = {'high_conf_det_threshold': self._least} if self._name != 'sort' else {}
        return self._kind(frame_rate=self._fps, **begin, **high)

    def _detections(self, instances: Instances, rows: np.ndarray, ids: np.ndarray | None = None) -> Any:
        return self._supervision.Detections(
            xyxy=instances.boxes.numpy()[rows],
            confidence=instances.scores.numpy()[rows],
            class_id=instances.labels.numpy()[rows],
            tracker_id=None if ids is None else ids[rows],
            data={'row': rows},
        )

    def _count(self, instances: Instances, ids: np.ndarray) -> None:
        rows = np.flatnonzero(ids >= 0)
        tracked = self._detections(instances, rows, ids)
        if self._line is not None:
            self._line_zone.trigger(tracked)
        if self._area is not None:
            inside = self._area_zone.trigger(tracked) if len(rows) else np.zeros(0, bool)
            self._now_inside = int(inside.sum())
            self._inside |= set(ids[rows][inside].tolist())

    def counts(self) -> dict[str, int]:
        """Return the objects so far: `tracks`; across the line `in` (to its left, seen from its first to its second
        point: upwards, for a line from left to right) and `out`; `inside` the area now, and `entered` so far.
        """
        counts = {'tracks': len(self._ids)}
        if self._line is not None:
            counts |= {'in': int(self._line_zone.in_count), 'out': int(self._line_zone.out_count)}
        if self._area is not None:
            counts |= {'inside': self._now_inside, 'entered': len(self._inside)}
        return counts

    def _with_trails(self, image: np.ndarray, instances: Instances, ids: np.ndarray) -> np.ndarray:
        image = image.copy()
        thick = max(1, max(image.shape[:2]) // 400)
        for row in np.flatnonzero(ids >= 0):
            left, top, right, bottom = instances.boxes[row].tolist()
            trail = self._trails[int(ids[row])]
            trail.append((round((left + right) / 2), round((top + bottom) / 2)))
            color = tuple(int(value) for value in np.random.default_rng(int(ids[row])).integers(80, 256, 3))
            cv2.polylines(image, [np.array(trail, np.int32)], False, color, 2 * thick, cv2.LINE_AA)
        counts = self.counts()
        for corners, names in ((self._line, ('in', 'out')), (self._area, ('inside', 'entered'))):
            if corners is not None:
                points = np.array(corners, np.int32).reshape(-1, 2)
                cv2.polylines(image, [points], corners is self._area, LINE_COLOR, 2 * thick, cv2.LINE_AA)
                image = _with_words(image, points, ', '.join(f'{name} {counts[name]}' for name in names))
        return image


def _with_words(image: np.ndarray, points: np.ndarray, words: str) -> np.ndarray:
    """Return the image with `words` above the left end of a line, or the top of an area: (N, 2) x, y of its points."""
    from PIL import Image

    height, width = image.shape[:2]
    x, y = points[points[:, 0].argmin() if len(points) == 2 else points[:, 1].argmin()].tolist()
    canvas = Image.fromarray(image)
    draw_label(canvas, (x, y), words, color=LINE_COLOR, size=font_size(height, width))
    return np.array(canvas)
