"""Reading and writing of videos with PyAV (extra `video`): more formats, H.264, and the times of frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vitdense.errors import ResourceError

CLOCK = Fraction(1, 90000)  # unit of the times in a file; .webm rounds them to milliseconds
CODECS = {
    '.mp4': ('libx264', {'preset': 'veryfast', 'crf': '20', 'bf': '0'}),
    '.webm': ('libvpx-vp9', {'deadline': 'realtime', 'cpu-used': '8', 'row-mt': '1', 'crf': '30', 'b': '0'}),
}


def has_pyav() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec('av') is not None


def import_pyav() -> Any:
    """Return the module. Raises ResourceError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ResourceError(
            'PyAV is not installed', where='encoder', why=str(error), fix="pip install 'vitdense[video]'"
        ) from error
    av.logging.set_level(av.logging.PANIC)  # its lines name no file; what it cannot do is an error
    return av


class PyAVCapture:
    """A video file with the methods of `cv2.VideoCapture` that are used here. Frames are turned upright."""

    def __init__(self, source: str) -> None:
        av = import_pyav()
        self._error = av.FFmpegError
        self._container, self._seconds = None, 0.0
        try:
            self._container = av.open(source)
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError):  # IndexError: a file of sounds
            self.release()
            return
        self._stream.thread_type = 'AUTO'
        self._frames = self._decoded()

    def isOpened(self) -> bool:  # noqa: N802 (the name that OpenCV gives it)
        return self._container is not None

    def set(self, key: int, value: float) -> bool:
        return False

    def get(self, key: int) -> float:
        stream = self._stream
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1000 * self._seconds
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if key == cv2.CAP_PROP_FPS:
            return rate
        if key == cv2.CAP_PROP_FRAME_COUNT:
            return stream.frames or (float(stream.duration * stream.time_base) * rate if stream.duration else 0)
        return 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        """Return whether the next frame could be decoded, and the frame (H, W, 3) uint8 BGR."""
        frame = next(self._frames, None)
        if frame is None:
            return False, None
        start = (self._stream.start_time or 0) * self._stream.time_base
        self._seconds = 0.0 if frame.time is None else frame.time - float(start)
        turns = round(frame.rotation / 90) % 4
        image = frame.to_ndarray(format='bgr24')
        return True, np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def release(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = None

    def _decoded(self) -> Iterator[Any]:
        """Yield the frames of the file; None for a packet that cannot be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except self._error:
                yield None
                continue
            if packet is None:
                return
            yield from frames


class PyAVEncoder:
    """Encodes RGB frames as H.264 (.mp4) or VP9 (.webm), at their times (`timed`), else evenly at `fps`.

    Raises OSError, also for a size that the codec cannot encode.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: Fraction, *, timed: bool) -> None:
        av = import_pyav()
        name, options = CODECS[path.suffix.lower()]
        self._make_frame = av.VideoFrame.from_ndarray
        self._clock = CLOCK if timed else 1 / fps
        self._frame = round(1 / fps / self._clock)  # units of the clock
        self._last, self._start = -1, None
        with _as_os_error():
            self._container = av.open(str(path), 'w')
        try:
            self._stream = stream = self._container.add_stream(name, rate=fps, options=dict(options))
            stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p'
            stream.codec_context.time_base = stream.time_base = self._clock
            with _as_os_error():
                stream.codec_context.open()
                self._container.start_encoding()
        except OSError:
            self._container.close()
            raise

    def write(self, image: np.ndarray, seconds: float) -> None:
        """Encode an (H, W, 3) uint8 RGB frame that is shown at `seconds`; the first one begins the video.

        Where times jump back, as in files put together of several, they go on one frame later.
        """
        frame = self._make_frame(image, format='rgb24')
        time = round(seconds / self._clock)
        self._start = time if self._start is None else self._start
        if 2 * (self._last - (time - self._start)) > self._frame:
            self._start = time - self._last - self._frame
        self._last = frame.pts = max(time - self._start, self._last + 1)
        frame.time_base = self._clock
        with _as_os_error():
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        with _as_os_error():
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise the errors of FFmpeg, of which some are of no other type, as OSError."""
    try:
        yield
    except import_pyav().FFmpegError as error:
        raise OSError(str(error)) from error
