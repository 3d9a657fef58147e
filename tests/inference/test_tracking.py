"""Objects of a video keep their ids and are counted. The tracker itself is that of another package."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vitdense.errors import ConfigError, ResourceError
from vitdense.inference import tracking
from vitdense.inference.result import Result
from vitdense.inference.tracking import Tracking, VideoTracker
from vitdense.types import Instances, SemanticMap
from vitdense.video.reader import VideoReader

META = {'classes': {'labels': ['car', 'bus']}, 'head_fields': {'det': 'labels'}}
CARS = 4  # in car-detection.mp4, counted by eye: white (upwards), light green (down), red (upwards), white (down)


def frame(*objects: tuple[float, float, int, float], size: tuple[int, int] = (100, 200)) -> Result:
    """Return a frame with objects of 20 x 10 pixels: (x, y) of the centre, class, score."""
    boxes = torch.tensor([[x - 10, y - 5, x + 10, y + 5] for x, y, _, _ in objects]).reshape(-1, 4).float()
    labels = torch.tensor([label for _, _, label, _ in objects], dtype=torch.int64)
    scores = torch.tensor([score for *_, score in objects], dtype=torch.float32)
    return Result(np.zeros((*size, 3), np.uint8), {'det': Instances(boxes, scores, labels)}, META)


@pytest.fixture(scope='module', autouse=True)
def package():
    pytest.importorskip('trackers')


@pytest.mark.parametrize('kind', ['bytetrack', 'ocsort', 'sort'])
def test_objects_keep_their_ids_while_they_move_and_classes_have_ids_of_their_own(kind):
    tracker = VideoTracker(Tracking(kind), fps=25)
    results = [tracker.update(frame((20 + 4 * k, 30, 0, 0.9), (180 - 4 * k, 70, 1, 0.9))) for k in range(12)]
    ids = [result['det'].track_ids.tolist() for result in results[4:]]
    assert ids == [ids[0]] * 8 and sorted(ids[0]) == [1, 2]
    assert [each.track_id for each in results[-1]] == ids[0]
    assert results[-1].to_dict()['objects']['det'][0]['track_id'] == ids[0][0]
    assert tracker.counts() == {'tracks': 2}


def test_an_object_of_low_score_continues_a_track_but_begins_none():
    tracker = VideoTracker(Tracking(), fps=25)
    scores = [0.9] * 5 + [0.2] * 4 + [0.9] * 3
    ids = [
        tracker.update(frame((20 + 4 * k, 30, 0, score)))['det'].track_ids.tolist() for k, score in enumerate(scores)
    ]
    assert ids[4:] == [[1]] * 8
    other = VideoTracker(Tracking(), fps=25)
    faint = [other.update(frame((20 + 4 * k, 30, 0, 0.2)))['det'].track_ids.tolist() for k in range(8)]
    assert faint == [[-1]] * 8 and other.counts() == {'tracks': 0}


def test_objects_are_counted_across_a_line_and_in_an_area():
    tracker = VideoTracker(Tracking('bytetrack', (100, 0, 100, 99), (120, 0, 199, 0, 199, 99, 120, 99)), fps=25)
    for k in range(30):
        result = tracker.update(frame((20 + 5 * k, 30, 0, 0.9), (40, 70, 1, 0.9)))
    counts = tracker.counts()
    assert counts['tracks'] == 2 and {counts['in'], counts['out']} == {0, 1}
    assert counts['inside'] == 1 and counts['entered'] == 1
    assert result.image.any()  # the trail and the line are drawn on a copy


def test_the_counts_drawn_are_those_so_far(monkeypatch):
    words = []
    monkeypatch.setattr(tracking, 'draw_label', lambda canvas, corner, text, **_: words.append((corner, text)))
    tracker = VideoTracker(Tracking('bytetrack', (100, 99, 100, 0), (120, 10, 199, 0, 199, 99, 120, 99)), fps=25)
    for k in range(30):
        tracker.update(frame((20 + 5 * k, 30, 0, 0.9)))
    assert words[:2] == [((100, 99), 'in 0, out 0'), ((199, 0), 'inside 0, entered 0')]
    assert words[-2:] == [((100, 99), 'in 0, out 1'), ((199, 0), 'inside 1, entered 1')]


def test_what_cannot_be_tracked_is_said(monkeypatch):
    tracker = VideoTracker(Tracking(), fps=25)
    labels = Result(np.zeros((9, 9, 3), np.uint8), {'sem': SemanticMap(torch.zeros(9, 9, dtype=torch.uint8))}, META)
    with pytest.raises(ConfigError, match='0 heads'):
        tracker.update(labels)
    monkeypatch.setitem(sys.modules, 'trackers', None)
    with pytest.raises(ResourceError, match='not installed'):
        VideoTracker(Tracking(), fps=25)


def moving_objects(background: np.ndarray, image: np.ndarray) -> Result:
    """Return what differs from the background as objects: a detector for a fixed camera that adapts its exposure."""
    ratio = (np.median(image, axis=(0, 1)) + 1) / (np.median(background, axis=(0, 1)) + 1)
    difference = np.abs(image - background * ratio).max(axis=2)
    mask = cv2.morphologyEx((difference > 45).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((11, 11), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [cv2.boundingRect(contour) for contour in contours if cv2.contourArea(contour) > 1500]
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]).reshape(-1, 4).float()
    actual = Instances(corners, torch.full((len(boxes),), 0.9), torch.zeros(len(boxes), dtype=torch.int64))
    return Result(image, {'det': actual}, META)


def test_cars_of_a_real_video_are_counted_as_by_eye(shared: Path):
    with VideoReader(shared / 'video' / 'car-detection.mp4') as reader:
        images = [cv2.resize(each.image, (384, 216)) for each in reader]
        fps = reader.fps
    background = np.median(images[::8], axis=0).astype(np.uint8)
    tracker = VideoTracker(Tracking('bytetrack', (0, 108, 383, 108)), fps=fps)
    for image in images:
        tracker.update(moving_objects(background, image))
    counts = tracker.counts()
    assert counts == {'tracks': CARS, 'in': 2, 'out': 2}
