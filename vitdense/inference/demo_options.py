"""Options of the demo."""

from __future__ import annotations

from typing import NamedTuple

from vitdense.inference.tracking import Tracking
from vitdense.video.reader import Selection
from vitdense.video.writer import Encoder
from vitdense.visualize.score_thresholds import MinScore


class Options(NamedTuple):
    """How predictions are drawn and written."""

    alpha: float = 0.5  # opacity of regions
    legend: bool = True
    min_score: MinScore = 'auto'  # objects below it are neither drawn nor counted
    labels: bool = False  # also write label maps as PNG
    coco: bool = False  # also collect the objects of images as a COCO file
    batch: int = 1  # images or frames that go through the network together
    save_video: bool = True
    video_format: str = '.mp4'
    encoder: Encoder = 'auto'  # of the video
    fps: float | None = None  # of the written video; None: that of the source, and its times where PyAV writes them
    max_frames: int | None = None
    selection: Selection = Selection()  # of the frames of videos
    tracking: Tracking | None = None  # of objects through the frames
    show: bool = False  # in a window
