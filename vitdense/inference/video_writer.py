"""Writing of videos in a thread; a written file is opened again and its frames are counted."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from vitdense.arguments import check
from vitdense.errors import ConfigError, DiskError
from vitdense.inference.video import QUEUE, logger
from vitdense.inference.video_files import check_openable, muted_stderr, quiet_opencv, writable_rate

CODECS = {'.mp4': 'mp4v', '.webm': 'VP90', '.avi': 'MJPG'}  # what every OpenCV wheel can encode


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
