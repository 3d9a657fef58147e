"""Reading of videos, cameras and streams in a thread.

The number of frames, frame rate and size of a container are often wrong: decoded frames count.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from vitdense.errors import DataError
from vitdense.video.formats import FASTEST, SLOWEST, check_openable, is_address, quiet_opencv, source_name
from vitdense.video.pyav import PyAVCapture, has_pyav

logger = logging.getLogger('vitdense')

DEFAULT_FPS = 25.0
USUAL_FPS = (1.0, 240.0)  # rates of a file that are not checked
MAX_SKIPPED = 30  # frames in a row that may fail to decode before the video is taken to be over
RECONNECT_AFTER = (0.5, 1, 2, 4, 8)  # seconds between attempts to open a live source again
QUEUE = 8  # frames that wait between two threads


class Frame(NamedTuple):
    """One image of a video."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    seconds: float  # when it is shown, from the start of the video; of a camera: since it was opened
    index: int  # counts decoded frames from 0


class Selection(NamedTuple):
    """Frames of a video that are used: every n-th of those from `start` to before `end`, in seconds."""

    every: int = 1
    start: float = 0.0
    end: float | None = None

    def of(self, frames: Iterable[tuple[np.ndarray, float]]) -> Iterator[tuple[np.ndarray, float]]:
        """Yield the selected ones of (image, seconds)."""
        from_start = itertools.dropwhile(lambda frame: frame[1] < self.start, frames)
        until_end = itertools.takewhile(lambda frame: self.end is None or frame[1] < self.end, from_start)
        return itertools.islice(until_end, 0, None, self.every)

    def count(self, announced: int, fps: float) -> int:
        """Return how many of the `announced` frames of a file are selected."""
        first = math.ceil(self.start * fps)
        last = announced if self.end is None else min(announced, math.ceil(self.end * fps))
        return max(0, math.ceil((last - first) / self.every))


class VideoReader:
    """Iterate over the frames of a video file, or over the newest frames of a live source.

    `source` is a path, the number of a camera, or the address of a stream, such as rtsp://HOST/PATH.

    `fps` is the frame rate of the file. One outside 1..240 must agree with the time stamps of the first two frames;
    else theirs is taken, or 25 where there are none, with a warning. `announced` is the number of frames that the file
    claims, 0 when it claims none; it is often wrong. `size` is (H, W) of the first frame. A file is decoded ahead in a
    thread; the thread of a live source (`is_live`) keeps the newest frame only, and opens a source that ends again.
    `selection` leaves frames out; `expected` is the number of frames to come, 0: unknown. `capture` opens the source
    (default: `cv2.VideoCapture`, and PyAV for files that it cannot decode). Frames are upright.

    Raises DataError when nothing can be decoded, or the camera does not exist.
    """

    def __init__(
        self,
        source: str | Path | int,
        *,
        selection: Selection | None = None,
        capture: Callable[[Any], Any] | None = None,
    ) -> None:
        self.is_camera, self.is_stream = isinstance(source, int), is_address(source)
        self.name = source_name(source)
        self.source = source if self.is_camera else str(source)
        self.selection = selection or Selection()
        self.read = 0  # frames handed out
        self.skipped = 0  # frames that could not be decoded
        self._ended = 0.0  # seconds at which the last decoded frame is over
        self._opened = time.monotonic()
        quiet_opencv()
        if not self.is_camera and not self.is_stream:
            check_openable(Path(source))
        self._make_capture = capture or cv2.VideoCapture
        self._capture = self._open()
        first = self._first()
        if first is None and capture is None and has_pyav() and not (self.is_camera or self.is_stream):
            self._capture.release()
            self._capture = PyAVCapture(self.source)
            first = self._first()
        if first is None:
            self._capture.release()
            raise self._unreadable()
        self.size = first[0].shape[:2]
        ahead = [first]
        self.fps = self._frame_rate(self._capture.get(cv2.CAP_PROP_FPS), ahead)
        self.expected = self.selection.count(self.announced, self.fps) if self.announced else 0
        self._frames: queue.Queue = queue.Queue(maxsize=1 if self.is_live else QUEUE)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(ahead,), name=f'read {self.name}', daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while (item := self._take()) is not None:
            if isinstance(item, Exception):
                raise item
            yield Frame(*item, self.read)
            self.read += 1

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and release the source."""
        self._closed.set()
        self._thread.join(timeout=10)

    def report(self) -> str:
        """Return in words how much was read: 'read 12 of 121 announced frames, 3 could not be decoded'."""
        words = (
            f'read {self.read} of {self.announced} announced frames' if self.announced else f'read {self.read} frames'
        )
        return words + (f', {self.skipped} could not be decoded' if self.skipped else '')

    def no_frames(self) -> DataError:
        """Return the error of a selection that leaves no frame, once all are read."""
        start, end = self.selection.start, self.selection.end
        length = self._ended if self._ended <= start + 1 / self.fps else self.announced / self.fps
        return DataError(
            f'{self.name}: no frame is shown from {start:g} s on' + (f' and before {end:g} s' if end else ''),
            where=str(self.source),
            why=(f'the video is {length:.1f} s long' if length else 'the video ends earlier')
            + f', with {self.fps:g} frames a second',
            fix='choose a part with frames: --start, --end',
        )

    def _first(self) -> tuple[np.ndarray, float] | None:
        """Read what the source announces, and return its first frame."""
        opened = self._capture.isOpened()
        announced = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) if opened else 0
        self.announced = int(announced) if math.isfinite(announced) and announced > 0 and not self.is_camera else 0
        self.is_live = self.is_camera or (self.is_stream and not self.announced)
        return self._decode() if opened else None

    def _decode(self) -> tuple[np.ndarray, float] | None:
        """Return the next frame and its time, or None at the end; a damaged stretch of up to 30 frames is skipped."""
        for failed in range(1 + (0 if self.is_live else MAX_SKIPPED)):
            good, frame = self._capture.read()
            if good and frame is not None and frame.size:
                self.skipped += failed
                seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if self.is_live:
                    seconds = time.monotonic() - self._opened
                return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), seconds
        return None

    def _open(self) -> Any:
        capture = self._make_capture(self.source)
        if self.is_camera or self.is_stream:
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture

    def _all(self, ahead: list[tuple[np.ndarray, float]]) -> Iterator[tuple[np.ndarray, float]]:
        """Yield the decoded frames with their times, which count frames in a container without time stamps."""
        for number, (image, seconds) in enumerate(itertools.chain(ahead, iter(self._next, None))):
            seconds = seconds if math.isfinite(seconds) and (seconds > 0 or number == 0) else number / self.fps
            self._ended = seconds + 1 / self.fps
            yield image, seconds

    def _next(self) -> tuple[np.ndarray, float] | None:
        """Return the next frame; a live source that has ended is opened again, a few times."""
        item = self._decode()
        for wait in RECONNECT_AFTER if self.is_live and item is None else ():
            if self._closed.wait(wait):
                return None
            self._capture.release()
            self._capture = self._open()
            item = self._decode() if self._capture.isOpened() else None
            logger.warning('%s: interrupted; %s', self.name, 'tried again' if item is None else 'connected again')
            if item is not None:
                break
        return item

    def _work(self, ahead: list[tuple[np.ndarray, float]]) -> None:
        try:
            for item in self.selection.of(self._all(ahead)):
                if self._closed.is_set():
                    break
                self._put(item)
        except Exception as error:  # raised in the thread that iterates
            self._put(error)
        finally:
            self._put(None)
            self._capture.release()

    def _put(self, item: Any) -> None:
        newest_only = self.is_live and item is not None
        while not self._closed.is_set():
            try:
                self._frames.put(item, block=not newest_only, timeout=0.1)
                return
            except queue.Full:
                if newest_only:  # drop the older frame
                    with contextlib.suppress(queue.Empty):
                        self._frames.get_nowait()

    def _take(self) -> Any:
        while not self._closed.is_set():
            try:
                return self._frames.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def _frame_rate(self, fps: float, ahead: list[tuple[np.ndarray, float]]) -> float:
        """Return the frame rate to use where the file says `fps`; frames that are decoded for it join `ahead`."""
        if USUAL_FPS[0] <= fps <= USUAL_FPS[1]:  # NaN is not
            return float(fps)
        if self.is_live:
            return DEFAULT_FPS
        second = self._decode()
        ahead += [second] if second is not None else []
        spacing = ahead[-1][1] - ahead[0][1]  # seconds; 0 for a container without time stamps
        stamped = 1 / spacing if SLOWEST <= 1 / max(spacing, 1e-9) <= FASTEST else 0.0
        if 0 < fps <= FASTEST and (not stamped or 0.5 <= fps / stamped <= 2):
            return float(fps)
        used = stamped or DEFAULT_FPS
        logger.warning('%s: a frame rate of %g is not possible; using %g', self.name, fps, used)
        return used

    def _unreadable(self) -> DataError:
        if self.is_camera:
            cameras = ', '.join(sorted(str(path) for path in Path('/dev').glob('video*'))) or 'none'
            return DataError(
                f'{self.name} cannot be opened (cameras of this machine: {cameras})',
                where=self.name,
                why='there is no such camera, another program holds it, or it may not be read',
                fix='give the number of a camera that is listed, or the path of a video file',
            )
        if self.is_stream:
            return DataError(
                f'{self.name}: no frame can be read',
                where=self.name,
                why='the address cannot be reached, asks for a password, or sends no video that OpenCV decodes',
                fix='try the address in a player, such as ffplay; rtsp://USER:PASSWORD@HOST/PATH names an account',
            )
        missing = not Path(self.source).is_file()
        return DataError(
            f'{self.name}: ' + ('there is no such file' if missing else 'no frame can be decoded'),
            where=self.source,
            why='the path is wrong' if missing else 'the file is empty, cut off, damaged, or in an unknown format',
            fix='check the path' if missing else 'copy or record the video again, or convert it: ffmpeg -i IN OUT.mp4',
        )
