"""Reading of videos and cameras, writing of videos; both run in threads.

The number of frames, frame rate and size of a container are often wrong: decoded frames count, and a written file is
opened again and its frames are counted.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from vitdense.arguments import check
from vitdense.errors import ConfigError, DataError, DiskError
from vitdense.inference.video_files import FASTEST, SLOWEST, check_openable, muted_stderr, quiet_opencv, writable_rate

logger = logging.getLogger('vitdense')

CODECS = {'.mp4': 'mp4v', '.webm': 'VP90', '.avi': 'MJPG'}  # what every OpenCV wheel can encode
DEFAULT_FPS = 25.0
USUAL_FPS = (1.0, 240.0)  # rates of a file that are not checked
MAX_SKIPPED = 30  # frames in a row that may fail to decode before the video is taken to be over
QUEUE = 8  # frames that wait between two threads


class Frame(NamedTuple):
    """One image of a video."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    seconds: float  # when it is shown, from the start of the video; of a camera: since it was opened
    index: int  # counts decoded frames from 0


class VideoReader:
    """Iterate over the frames of a video file, or over the newest frames of a camera (`source` is its number).

    `fps` is the frame rate of the file. One outside 1..240 must agree with the time stamps of the first two frames;
    else theirs is taken, or 25 where there are none, with a warning. `announced` is the number of frames that the file
    claims, 0 when it claims none; it is often wrong. `size` is (H, W) of the first frame. A file is decoded ahead
    in a thread; a camera thread keeps the newest frame only. `capture` opens the source (default: `cv2.VideoCapture`).

    Raises DataError when nothing can be decoded, or the camera does not exist.
    """

    def __init__(self, source: str | Path | int, *, capture: Callable[[Any], Any] | None = None) -> None:
        self.is_camera = isinstance(source, int)
        self.name = f'camera {source}' if self.is_camera else Path(source).name
        self.source = source if self.is_camera else str(source)
        self.read = 0  # frames handed out
        self.skipped = 0  # frames that could not be decoded
        self._opened = time.monotonic()
        quiet_opencv()
        if not self.is_camera:
            check_openable(Path(source))
        self._capture = (capture or cv2.VideoCapture)(self.source)
        if self.is_camera:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        first = self._decode() if self._capture.isOpened() else None
        if first is None:
            self._capture.release()
            raise self._unreadable()
        self.size = first[0].shape[:2]
        ahead = [first]
        self.fps = self._frame_rate(self._capture.get(cv2.CAP_PROP_FPS), ahead)
        announced = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.announced = int(announced) if math.isfinite(announced) and announced > 0 and not self.is_camera else 0
        self._frames: queue.Queue = queue.Queue(maxsize=1 if self.is_camera else QUEUE)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(ahead,), name=f'read {self.name}', daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while (item := self._take()) is not None:
            if isinstance(item, Exception):
                raise item
            image, seconds = item
            if not (math.isfinite(seconds) and (seconds > 0 or self.read == 0)):
                seconds = self.read / self.fps  # a container without time stamps
            yield Frame(image, seconds, self.read)
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

    def _decode(self) -> tuple[np.ndarray, float] | None:
        """Return the next frame and its time, or None at the end; a damaged stretch of up to 30 frames is skipped."""
        for failed in range(1 + (0 if self.is_camera else MAX_SKIPPED)):
            good, frame = self._capture.read()
            if good and frame is not None and frame.size:
                self.skipped += failed
                seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if self.is_camera:
                    seconds = time.monotonic() - self._opened
                return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), seconds
        return None

    def _work(self, ahead: list[tuple[np.ndarray, float]]) -> None:
        try:
            for item in itertools.chain(ahead, iter(self._decode, None)):
                if self._closed.is_set():
                    break
                self._put(item)
        except Exception as error:  # raised in the thread that iterates
            self._put(error)
        finally:
            self._put(None)
            self._capture.release()

    def _put(self, item: Any) -> None:
        newest_only = self.is_camera and item is not None
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
        if self.is_camera:
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
        missing = not Path(self.source).is_file()
        return DataError(
            f'{self.name}: ' + ('there is no such file' if missing else 'no frame can be decoded'),
            where=self.source,
            why='the path is wrong' if missing else 'the file is empty, cut off, damaged, or in an unknown format',
            fix='check the path' if missing else 'copy or record the video again, or convert it: ffmpeg -i IN OUT.mp4',
        )


class VideoWriter:
    """Write RGB frames to a video file, in a thread.

    The suffix chooses the format: .mp4 (MPEG-4), .webm (VP9: plays in browsers, slow to encode) or .avi (Motion JPEG).
    `size` is (H, W) of the frames. Odd sizes are padded by one repeated row or column, as the codecs would cut them
    (`padded`). `fps` is the frame rate that is written: the nearest one that the format and OpenCV can hold.
    Leaving the `with` block finishes the file, opens it again and counts its frames.

    Raises ConfigError for another suffix, DiskError when the file cannot be written or is not whole.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], fps: float) -> None:
        self.path = Path(path)
        self.size = size
        self.padded = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self.written = 0
        self._warned = False
        self.fps = self._checked_rate(fps)
        self._open()
        self._frames: queue.Queue = queue.Queue(maxsize=QUEUE)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f'write {self.path.name}', daemon=True)
        self._thread.start()

    def write(self, frame: np.ndarray | Callable[[], np.ndarray]) -> None:
        """Queue an (H, W, 3) uint8 RGB frame, or a function that makes it, which is called in the thread."""
        self._raise()
        self._frames.put(frame)

    def close(self) -> None:
        """Finish and verify the file. Raises errors of the thread, DiskError when frames are missing."""
        if self._thread.is_alive():
            self._frames.put(None)
            self._thread.join()
        self._writer.release()
        self._raise()
        readable = count_frames(self.path)
        if readable != self.written:
            raise DiskError(
                f'{self.path.name}: {self.written} frames were written, {readable} can be read back',
                where=str(self.path),
                why='the disk is full, or the encoder failed without an error',
                fix='free some space, or choose another format (.mp4, .webm, .avi)',
            )

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._thread.is_alive():  # keep the frames so far; the first error is raised
            self._frames.put(None)
            self._thread.join()
            self._writer.release()

    def _checked_rate(self, fps: float) -> float:
        """Return the frame rate to write, and say how it differs from `fps`. Raises ConfigError."""
        if self.path.suffix.lower() not in CODECS:
            raise ConfigError(
                f"cannot write a video as '{self.path.suffix}'",
                where=str(self.path),
                why=f'the suffix names the format; known are {", ".join(CODECS)}',
                fix='give the file the suffix .mp4',
            )
        check(math.isfinite(fps) and fps > 0, 'fps', fps, 'a frame rate is a number above 0', '--fps 25')
        rate = float(writable_rate(fps, self.path.suffix.lower()))
        if abs(rate - fps) > 2e-6 * fps:  # 30000/1001 is written as 29.97
            logger.info('%s: written with %g frames a second, the nearest it can hold to %g', self.path.name, rate, fps)
        return rate

    def _open(self) -> None:
        quiet_opencv()
        height, width = self.padded
        check_openable(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open('wb').close()  # OpenCV gives no reason
        except OSError as error:
            why, fix = str(error), 'free some space, or choose a folder that you may write to'
            raise DiskError(f'cannot write {self.path.name}', where=str(self.path), why=why, fix=fix) from error
        codec = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
        with muted_stderr():
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, (width, height))
        if not self._writer.isOpened():
            self.path.unlink(missing_ok=True)
            raise DiskError(
                f'cannot write {self.path.name}',
                where=str(self.path),
                why=f'OpenCV cannot encode {width} x {height} pixels at {self.fps:g} frames a second in this format',
                fix='choose another format (.mp4, .webm, .avi), or smaller frames',
            )
        if self.padded != self.size:
            logger.info('%s: frames of %s padded to even %s', self.path.name, self.size, self.padded)

    def _work(self) -> None:
        while (frame := self._frames.get()) is not None:
            if self._error is not None:
                continue  # empty the queue: `write` waits for free space in it
            try:
                self._encode(frame() if callable(frame) else frame)
            except BaseException as error:  # raised in the thread that writes
                self._error = error

    def _encode(self, frame: np.ndarray) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f'a frame is (H, W, 3) uint8, got {frame.shape} {frame.dtype}')
        if frame.shape[:2] != self.size:  # OpenCV would drop it silently
            if not self._warned:
                logger.warning('%s: frames change from %s to %s; resized', self.path.name, self.size, frame.shape[:2])
            self._warned = True
            frame = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA)
        bottom, right = self.padded[0] - self.size[0], self.padded[1] - self.size[1]
        if bottom or right:
            frame = np.pad(frame, ((0, bottom), (0, right), (0, 0)), mode='edge')
        if self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)) is False:  # OpenCV 4 returns None
            raise DiskError(
                f'{self.path.name}: frame {self.written} could not be written',
                where=str(self.path),
                why='the encoder refused it',
                fix='free some space, or choose another format (.mp4, .webm, .avi)',
            )
        self.written += 1

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def count_frames(path: str | Path) -> int:
    """Return how many frames of a video file can really be decoded."""
    quiet_opencv()
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.isOpened() and capture.grab():
        count += 1
    capture.release()
    return count
