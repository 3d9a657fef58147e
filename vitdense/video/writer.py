"""Writing of videos in a thread; a written file is opened again and its frames are counted."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from vitdense.arguments import check, check_choice
from vitdense.errors import ConfigError, DiskError
from vitdense.storage.atomic import disk_fix
from vitdense.video.formats import check_openable, muted_stderr, quiet_opencv, writable_rate
from vitdense.video.pyav import CODECS as PYAV_CODECS
from vitdense.video.pyav import PyAVEncoder, has_pyav
from vitdense.video.reader import QUEUE, logger

CODECS = {'.mp4': 'mp4v', '.webm': 'VP90', '.avi': 'MJPG'}  # what every OpenCV wheel can encode
Encoder = Literal['auto', 'opencv', 'pyav']
UNEVEN = 1.5  # frames by which times may differ from those of an even rate before it is said


class VideoWriter:
    """Write RGB frames to a video file, in a thread.

    The suffix chooses the format: .mp4, .webm (plays in browsers, slow to encode) or .avi (Motion JPEG). With PyAV
    (`encoder` 'pyav', or 'auto' where it is installed) an .mp4 is H.264, and frames of a `timed` video are shown at
    their own times; OpenCV writes MPEG-4 at an even rate.
    `size` is (H, W) of the frames. Odd sizes are padded by one repeated row or column, as the codecs would cut them
    (`padded`). `fps` is the frame rate that is written: the nearest one that the format and OpenCV can hold; of a
    timed video the mean, once it is closed. Leaving the `with` block finishes the file, opens it again and counts its
    frames.

    Raises ConfigError for another suffix, DiskError when the file cannot be written or is not whole, ResourceError
    where PyAV is asked for and missing.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int], fps: float, *, encoder: Encoder = 'auto', timed: bool = False
    ) -> None:
        self.path = Path(path)
        self.size = size
        self.padded = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self.written = 0
        self._warned = False
        check_choice('encoder', encoder, ('auto', 'opencv', 'pyav'))
        suffix = self.path.suffix.lower()
        self._pyav = suffix in PYAV_CODECS and (encoder == 'pyav' or (encoder == 'auto' and has_pyav()))
        self.timed = timed and self._pyav
        self.fps = self._checked_rate(fps)
        self._times = _FrameTimes(self.fps)
        self._writer = self._open()
        self._frames: queue.Queue = queue.Queue(maxsize=QUEUE)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f'write {self.path.name}', daemon=True)
        self._thread.start()

    def write(self, frame: np.ndarray | Callable[[], np.ndarray], seconds: float | None = None) -> None:
        """Queue an (H, W, 3) uint8 RGB frame, or a function that makes it, which is called in the thread.

        `seconds` is when it is shown, from any start.
        """
        self._raise()
        self._frames.put((frame, seconds))

    def close(self) -> None:
        """Finish and verify the file. Raises errors of the thread, DiskError when frames are missing."""
        self._finish()
        self._raise()
        readable = count_frames(self.path)
        if readable != self.written:
            message = f'{self.path.name}: {self.written} frames were written, {readable} can be read back'
            raise self._error_of(message, 'the disk is full, or the encoder failed without an error')
        if self.timed:
            self.fps = self._times.mean_rate()
        elif self._times.largest_shift > UNEVEN / self.fps:
            logger.warning(
                '%s: written with %g frames a second; the times of the source differ by up to %.3g s.'
                " An .mp4 keeps them with PyAV: pip install 'vitdense[video]'",
                *(self.path.name, self.fps, self._times.largest_shift),
            )

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # keep the frames so far; the first error is raised
            self._finish()

    def _finish(self) -> None:
        """Encode what waits and complete the file, also after Ctrl-C: without its end it cannot be played."""
        steps = [lambda: self._frames.put(None), self._thread.join] if self._thread.is_alive() else []
        interrupted = False
        while steps:
            try:
                steps[0]()
                steps.pop(0)
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            raise KeyboardInterrupt

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
        if abs(rate - fps) > 2e-6 * fps and not self.timed:  # 30000/1001 is written as 29.97
            logger.info('%s: written with %g frames a second, the nearest it can hold to %g', self.path.name, rate, fps)
        return rate

    def _open(self) -> PyAVEncoder | _OpenCVEncoder:
        quiet_opencv()
        check_openable(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open('wb').close()  # OpenCV gives no reason
        except OSError as error:
            raise self._error_of(f'cannot write {self.path.name}', str(error), disk_fix(error)) from error
        try:
            if self._pyav:
                encoder = PyAVEncoder(
                    self.path, self.padded, Fraction(self.fps).limit_denominator(1000), timed=self.timed
                )
            else:
                encoder = _OpenCVEncoder(self.path, self.padded, self.fps)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            height, width = self.padded
            why = f'the encoder takes no {width} x {height} pixels at {self.fps:g} frames a second in this format'
            fix = 'choose another format (.mp4, .webm, .avi), or smaller frames'
            raise self._error_of(f'cannot write {self.path.name}', why, fix) from error
        if self.padded != self.size:
            logger.info('%s: frames of %s padded to even %s', self.path.name, self.size, self.padded)
        return encoder

    def _work(self) -> None:
        while (item := self._frames.get()) is not None:
            if self._error is not None:
                continue  # empty the queue: `write` waits for free space in it
            frame, seconds = item
            try:
                self._encode(frame() if callable(frame) else frame, seconds)
            except BaseException as error:  # raised in the thread that writes
                self._error = error
        try:
            self._writer.close()
        except BaseException as error:
            self._error = self._error or error

    def _encode(self, frame: np.ndarray, seconds: float | None) -> None:
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
        even = self.written / self.fps
        self._times.add(even if seconds is None else seconds)
        try:
            self._writer.write(frame, seconds if self.timed and seconds is not None else even)
        except OSError as error:
            message = f'{self.path.name}: frame {self.written} could not be written'
            raise self._error_of(message, f'the encoder refused it: {error}') from error
        self.written += 1

    def _error_of(
        self, message: str, why: str, fix: str = 'free some space, or choose another format (.mp4, .webm, .avi)'
    ) -> DiskError:
        return DiskError(message, where=str(self.path), why=why, fix=fix)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


class _FrameTimes:
    """Times of the frames so far, beside those of an even rate."""

    def __init__(self, fps: float) -> None:
        self.fps, self.count, self.first, self.last = fps, 0, 0.0, 0.0
        self.largest_shift = 0.0  # seconds

    def add(self, seconds: float) -> None:
        self.first = seconds if self.count == 0 else self.first
        self.last = seconds
        self.largest_shift = max(self.largest_shift, abs(seconds - self.first - self.count / self.fps))
        self.count += 1

    def mean_rate(self) -> float:
        """Return the frames a second; `fps` where they take no time."""
        return round((self.count - 1) / (self.last - self.first), 6) if self.last > self.first else self.fps


class _OpenCVEncoder:
    """Encodes RGB frames at an even rate. Raises OSError, also for a size that the codec cannot encode."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
        with muted_stderr():
            self._writer = cv2.VideoWriter(str(path), codec, fps, size[::-1])
        if not self._writer.isOpened():
            raise OSError('OpenCV cannot encode this')

    def write(self, image: np.ndarray, seconds: float) -> None:
        if self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)) is False:  # OpenCV 4 returns None
            raise OSError('OpenCV gives no reason')

    def close(self) -> None:
        self._writer.release()


def count_frames(path: str | Path) -> int:
    """Return how many frames of a video file can really be decoded."""
    quiet_opencv()
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.isOpened() and capture.grab():
        count += 1
    capture.release()
    return count
