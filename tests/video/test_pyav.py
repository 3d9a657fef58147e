"""Videos with PyAV: formats that OpenCV cannot decode, rotation, H.264 and the times of frames."""

import logging
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vitdense.errors import ResourceError
from vitdense.video.pyav import PyAVCapture
from vitdense.video.reader import VideoReader
from vitdense.video.writer import VideoWriter, count_frames

av = pytest.importorskip('av')
UNEVEN = [0.0, 0.04, 0.08, 0.5, 0.54, 1.2, 1.24, 2.0]  # seconds
CLOCK = Fraction(1, 1000)


def encode(path: Path, codec: str, seconds: list[float], size: tuple[int, int] = (48, 64)) -> Path:
    """Write a video whose frames have these times, and a brightness that encodes their number."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, 'rgb24' if codec == 'png' else 'yuv420p'
        stream.codec_context.time_base = CLOCK
        for number, time in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 10 + 8 * number, np.uint8), format='rgb24')
            frame.pts, frame.time_base = round(time / CLOCK), CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def codec_and_times(path: Path) -> tuple[str, list[float]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.name, [float(frame.time) for frame in container.decode(stream)]


def write(path: Path, seconds: list[float], **options) -> VideoWriter:
    with VideoWriter(path, (48, 64), 25, **options) as writer:
        for number, time in enumerate(seconds):
            writer.write(np.full((48, 64, 3), 10 + 8 * number, np.uint8), time)
    return writer


def without_pyav(monkeypatch) -> None:
    monkeypatch.setattr('vitdense.video.writer.has_pyav', lambda: False)
    monkeypatch.setattr('vitdense.video.reader.has_pyav', lambda: False)


def test_a_codec_that_opencv_cannot_decode_is_read_with_its_times(tmp_path):
    path = encode(tmp_path / 'a.mkv', 'av1', UNEVEN)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert [frame.seconds for frame in frames] == pytest.approx(UNEVEN) and reader.size == (48, 64)
    assert all(abs(float(frame.image.mean()) - 10 - 8 * frame.index) < 6 for frame in frames)


@pytest.mark.parametrize('codec', ['libx264', 'mpeg4'])
def test_opencv_gives_the_times_of_an_uneven_video(tmp_path, codec):
    with VideoReader(encode(tmp_path / 'a.mkv', codec, UNEVEN)) as reader:
        assert [frame.seconds for frame in reader] == pytest.approx(UNEVEN)
    assert not isinstance(reader._capture, PyAVCapture)


@pytest.mark.parametrize('turn', [90, 180, 270])
def test_a_turned_video_is_upright_by_both(tmp_path, turn):
    path = tmp_path / 'a.mp4'
    corners = np.zeros((48, 64, 3), np.uint8)
    corners[:24, :32], corners[:24, 32:], corners[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    with VideoWriter(path, (48, 64), 25, encoder='pyav') as writer:
        writer.write(corners)
    content = bytearray(path.read_bytes())
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[turn]  # ISO/IEC 14496-12, 8.3.2
    start = content.index(b'tkhd') + 44
    struct.pack_into('>9i', content, start, *(v << 16 for v in (*matrix[:2], 0, *matrix[2:], 0, 0, 0)), 1 << 30)
    path.write_bytes(content)
    expected = np.rot90(corners, -turn // 90)
    opencv = VideoReader(path)
    assert not isinstance(opencv._capture, PyAVCapture)
    for reader in (opencv, VideoReader(path, capture=PyAVCapture)):
        with reader:
            frame = next(iter(reader)).image
        assert reader.size == expected.shape[:2] == frame.shape[:2]
        assert np.abs(frame.astype(int) - expected).mean() < 30  # another turn differs by more than 60


@pytest.mark.parametrize('suffix', ['.mp4', '.webm'])
def test_frames_are_shown_at_their_own_times(tmp_path, suffix):
    writer = write(tmp_path / f'a{suffix}', [time + 3 for time in UNEVEN], timed=True)
    codec, times = codec_and_times(writer.path)
    assert codec in ('h264', 'vp9', 'libvpx-vp9') and times == pytest.approx(UNEVEN, abs=6e-4)
    assert writer.fps == pytest.approx(7 / 2) and count_frames(writer.path) == 8


def test_times_that_repeat_or_jump_back_go_on(tmp_path):
    times = codec_and_times(write(tmp_path / 'a.mp4', [0, 0.5, 0.5, 0.6, 0.0, 0.5], timed=True).path)[1]
    assert times == sorted(set(times)) and times == pytest.approx([0, 0.5, 0.5, 0.6, 0.64, 1.14], abs=1e-4)


def test_without_pyav_the_rate_is_even_and_said(tmp_path, monkeypatch, caplog):
    without_pyav(monkeypatch)
    writer = write(tmp_path / 'a.mp4', UNEVEN, timed=True)
    codec, times = codec_and_times(writer.path)
    assert codec == 'mpeg4' and times == pytest.approx([number / 25 for number in range(8)])
    assert 'written with 25 frames a second; the times of the source differ by up to 1.72 s' in caplog.text
    caplog.clear()
    write(tmp_path / 'b.mp4', [number / 25 for number in range(8)], timed=True)
    assert 'differ' not in caplog.text


def test_pyav_that_is_asked_for_and_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'av', None)
    with pytest.raises(ResourceError, match='PyAV is not installed') as caught:
        VideoWriter(tmp_path / 'a.mp4', (48, 64), 25, encoder='pyav')
    assert 'vitdense[video]' in caught.value.fix


@pytest.mark.faults
def test_a_damaged_packet_is_skipped_and_counted(tmp_path):
    path = encode(tmp_path / 'a.mov', 'png', [number / 25 for number in range(12)])
    content = bytearray(path.read_bytes())
    start = [at for at in range(len(content)) if content[at : at + 4] == b'\x89PNG'][4]
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    with VideoReader(path, capture=PyAVCapture) as reader:
        assert [round(frame.seconds * 25) for frame in reader] == [0, 1, 2, 3, *range(5, 12)]
    assert reader.skipped == 1


@pytest.mark.faults
@pytest.mark.parametrize('encoder', ['opencv', 'pyav'])
def test_ctrl_c_while_the_file_is_finished_leaves_it_whole(tmp_path, encoder):
    writer = VideoWriter(tmp_path / 'a.mp4', (48, 64), 25, encoder=encoder)
    for _ in range(8):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    join, presses = writer._thread.join, iter([KeyboardInterrupt, KeyboardInterrupt])

    def interrupted(*arguments):
        press = next(presses, None)
        if press:
            raise press
        join(*arguments)

    writer._thread.join = interrupted
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert count_frames(writer.path) == 8


@pytest.fixture(autouse=True)
def log_lines(caplog):
    caplog.set_level(logging.INFO, 'vitdense')
