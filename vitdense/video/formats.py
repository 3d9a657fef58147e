"""Files that are videos, by suffix and by content, and what OpenCV can open and write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import cv2

from vitdense.errors import DataError
from vitdense.video.pyav import PyAVCapture, has_pyav

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.mov', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv', '.ts')
STREAMS = ('rtsp', 'rtsps', 'rtmp', 'http', 'https', 'udp', 'tcp', 'srt')
SLOWEST, FASTEST = Fraction(2, 1000), Fraction(1000)  # OpenCV writes nothing slower; AVI loses frames above
MPEG4_CLOCK = 65535  # largest numerator of a frame rate: MPEG-4 counts time in 16 bits (ISO/IEC 14496-2, 6.3.3)

_QUICKTIME = (b'ftyp', b'moov', b'mdat', b'wide', b'free', b'skip', b'pnot')  # first atoms of MP4 and QuickTime files
_STILL = (b'avif', b'avis', b'heic', b'heix', b'mif1', b'msf1', b'M4A ', b'M4B ')  # such files that hold no video
_BEGINNINGS = (
    b'\x1a\x45\xdf\xa3',  # Matroska, WebM
    b'FLV\x01',
    b'\x30\x26\xb2\x75\x8e\x66\xcf\x11',  # ASF, WMV
    b'\x00\x00\x01\xba',  # MPEG program stream, VOB
    b'\x00\x00\x01\xb3',  # MPEG video
    b'\x00\x00\x00\x01\x67',  # H.264
    b'OggS',
    b'DKIF',  # IVF
    b'YUV4MPEG2',
    b'.RMF',
    b'\x06\x0e\x2b\x34',  # MXF
)


def is_address(source: object) -> bool:
    """Whether a source is the address of a stream."""
    return isinstance(source, str) and urlsplit(source).scheme in STREAMS


def source_name(source: str | Path | int) -> str:
    """Return how messages and results call a source: of an address without user and password."""
    if isinstance(source, int):
        return f'camera {source}'
    if not is_address(source):
        return Path(source).name
    parts = urlsplit(source)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition('@')[2], query='', fragment=''))


def is_video(path: Path) -> bool:
    """Whether a regular file begins as video files do."""
    try:
        with path.open('rb') as file:
            head = file.read(600)
    except OSError:
        return False
    transport = head[:377:188] == b'GGG' or head[4:389:192] == b'GGG'  # packets of 188 bytes, or 192 (.m2ts)
    quicktime = head[4:8] in _QUICKTIME and not (head[4:8] == b'ftyp' and head[8:12] in _STILL)
    return head.startswith(_BEGINNINGS) or quicktime or transport or (head[:4] == b'RIFF' and head[8:12] == b'AVI ')


def opens_as_video(path: Path) -> bool:
    """Whether a frame of a regular file can be decoded. Text is none: FFmpeg would play some of it as a terminal."""
    with path.open('rb') as file:
        if b'\0' not in file.read(4096):
            return False
    quiet_opencv()
    kinds = (cv2.VideoCapture, *([PyAVCapture] if has_pyav() else []))
    return any(_decodes(kind(str(path))) for kind in kinds)


def _decodes(capture: cv2.VideoCapture | PyAVCapture) -> bool:
    try:
        return capture.isOpened() and capture.read()[0]
    finally:
        capture.release()


def writable_rate(fps: float, suffix: str) -> Fraction:
    """Return the frame rate nearest to `fps` (positive) that OpenCV can write to a file of that suffix.

    OpenCV rounds rates to thousandths; MPEG-4 (.mp4) holds numerators up to 65535, so that fast ones have hundredths.
    """
    rate = min(max(Fraction(fps), SLOWEST), FASTEST)
    steps = next(base for base in (1000, 100, 10) if suffix != '.mp4' or rate * base <= MPEG4_CLOCK)
    return Fraction(round(rate * steps), steps)


def quiet_opencv() -> None:
    """Silence OpenCV and its FFmpeg, unless the environment asks for their lines: they name no file.

    What they cannot do is raised as an error here.
    """
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    if 'OPENCV_LOG_LEVEL' not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def muted_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2: OpenCV always prints a line about VP9 there."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        with open(os.devnull, 'w') as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_openable(path: Path) -> None:
    """Raise DataError for what OpenCV would wait for without end, and for names that it cannot take."""
    if path.exists() and not path.is_file():
        raise DataError(
            f'{path.name}: not a regular file',
            where=str(path),
            why='a folder, a pipe or a device may never end',
            fix='give a video file; a camera is named by its number, such as 0',
        )
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f'{path.name}: its name is not UTF-8',
            where=str(path),
            why='OpenCV opens no video of such a name',
            fix='rename the file or the folder',
        ) from error
