"""Videos: what is decoded counts, not what containers say; what is written can be read back."""

import logging
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from vitdense.errors import ConfigError, DataError, DiskError
from vitdense.video.reader import DEFAULT_FPS, Selection, VideoReader
from vitdense.video.writer import VideoWriter, count_frames


def frames_of(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Return frames whose brightness encodes their number."""
    return [np.full((*size, 3), 10 + 8 * index, np.uint8) for index in range(count)]


def write(path, frames, fps=25.0):
    with VideoWriter(path, frames[0].shape[:2], fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


class FakeCapture:
    """A capture with the properties and frames of a test; None in `frames` is a frame that cannot be decoded."""

    def __init__(self, frames, *, fps=25.0, announced=None, seconds=None, delay=0.0):
        self.frames, self.fps, self.delay = list(frames), fps, delay
        self.announced = len(self.frames) if announced is None else announced
        self.seconds = seconds
        self.position = -1
        self.settings = {}

    def __call__(self, source):
        return self

    def isOpened(self):
        return True

    def set(self, key, value):
        self.settings[key] = value

    def get(self, key):
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1000 * self.seconds[self.position] if self.seconds else 0.0
        return {cv2.CAP_PROP_FPS: self.fps, cv2.CAP_PROP_FRAME_COUNT: self.announced}[key]

    def read(self):
        time.sleep(self.delay)
        self.position += 1
        frame = self.frames[self.position] if self.position < len(self.frames) else None
        return frame is not None, frame

    def release(self):
        pass


@pytest.mark.parametrize('suffix', ['.mp4', '.webm', '.avi'])
def test_what_is_written_comes_back(tmp_path, suffix):
    path = write(tmp_path / f'video{suffix}', frames_of(12), fps=10.0)
    with VideoReader(path) as reader:
        frames = list(reader)
    assert len(frames) == 12 and reader.size == (48, 64) and reader.fps == pytest.approx(10)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in range(12)], abs=2e-3)
    assert all(abs(float(frame.image.mean()) - 10 - 8 * frame.index) < 4 for frame in frames)


def test_colours_stay_rgb(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    with VideoReader(write(tmp_path / 'red.mp4', [red])) as reader:
        frame = next(iter(reader)).image
    assert frame[..., 0].mean() > 150 > 60 > frame[..., 2].mean()


def test_odd_sizes_are_padded_not_cut(tmp_path):
    frames = frames_of(3, (97, 131))
    with VideoWriter(tmp_path / 'odd.mp4', (97, 131), 25) as writer:
        for frame in frames:
            writer.write(frame)
    assert writer.padded == (98, 132)
    with VideoReader(tmp_path / 'odd.mp4') as reader:
        assert reader.size == (98, 132) and len(list(reader)) == 3


def test_a_frame_of_another_size_is_resized_not_dropped(tmp_path, caplog):
    with VideoWriter(tmp_path / 'two.mp4', (48, 64), 25) as writer:
        for frame in frames_of(2) + frames_of(2, (96, 128)):
            writer.write(frame)
    assert count_frames(tmp_path / 'two.mp4') == 4
    assert 'resized' in caplog.text


def test_one_frame_is_a_video(tmp_path):
    assert count_frames(write(tmp_path / 'one.mp4', frames_of(1))) == 1


def test_frames_are_made_in_the_writers_thread_and_its_errors_arrive(tmp_path):
    def broken():
        raise ZeroDivisionError('in the thread')

    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / 'a.mp4', (48, 64), 25) as writer:
        writer.write(lambda: frames_of(1)[0])
        writer.write(broken)
        for _ in range(100):
            writer.write(frames_of(1)[0])


def test_lost_frames_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr('vitdense.video.writer.count_frames', lambda path: 1)
    with pytest.raises(DiskError, match='2 frames were written, 1 can be read back'):
        write(tmp_path / 'a.mp4', frames_of(2))


@pytest.mark.parametrize(('name', 'fps'), [('a.gif', 25), ('a.mp4', 0), ('a.mp4', float('nan'))])
def test_writer_refuses_what_cannot_be(tmp_path, name, fps):
    with pytest.raises(ConfigError):
        VideoWriter(tmp_path / name, (48, 64), fps)


@pytest.mark.faults
@pytest.mark.parametrize('content', [b'', b'<html></html>', None], ids=['empty', 'html', 'missing'])
def test_a_file_that_is_no_video_is_a_data_error(tmp_path, content):
    if content is not None:
        (tmp_path / 'bad.mp4').write_bytes(content)
    with pytest.raises(DataError, match='bad.mp4') as caught:
        VideoReader(tmp_path / 'bad.mp4')
    assert caught.value.exit_code == 3


@pytest.mark.faults
def test_a_video_whose_frames_are_damaged_is_a_data_error(tmp_path):
    path = write(tmp_path / 'a.mp4', frames_of(20))
    data = bytearray(path.read_bytes())
    start = data.index(b'mdat') + 4
    data[start : data.index(b'moov') - 4] = bytes(data.index(b'moov') - 4 - start)
    path.write_bytes(data)
    with pytest.raises(DataError, match='no frame can be decoded'):
        VideoReader(path)


@pytest.mark.faults
def test_a_truncated_video_gives_what_it_has(tmp_path):
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(20)]
    path = write(tmp_path / 'a.avi', frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(path) as reader:
        count = len(list(reader))
    assert 1 <= count < 20
    assert reader.report().startswith(f'read {count} ')


@pytest.mark.faults
@pytest.mark.parametrize('fps', [0.0, -1.0, 180000.0, float('nan'), float('inf')])
def test_an_impossible_frame_rate_becomes_25(fps, caplog):
    with VideoReader('a.mp4', capture=FakeCapture(frames_of(4), fps=fps)) as reader:
        assert reader.fps == DEFAULT_FPS
        assert [frame.seconds for frame in reader] == [0, 1 / 25, 2 / 25, 3 / 25]  # no time stamps either
    assert 'frame rate' in caplog.text


@pytest.mark.parametrize(
    ('suffix', 'encoder'),
    [('.mp4', 'opencv'), ('.webm', 'opencv'), ('.avi', 'opencv'), ('.mp4', 'pyav'), ('.webm', 'pyav')],
)
@pytest.mark.parametrize('fps', [0.002, 0.5, 1 / 3, 24000 / 1001, 59.94, 66.667, 119.987, 211.222, 480, 960.25, 1000])
def test_every_frame_rate_is_written(tmp_path, suffix, encoder, fps):
    if encoder == 'pyav':
        pytest.importorskip('av')
    with VideoWriter(tmp_path / f'a{suffix}', (48, 64), fps, encoder=encoder) as writer:
        for frame in frames_of(6):
            writer.write(frame)
    assert writer.fps == pytest.approx(fps, rel=2e-3 if fps < 1 else 1e-4)
    with VideoReader(writer.path) as reader:
        frames = list(reader)
    assert reader.fps == pytest.approx(writer.fps, rel=1e-5) and len(frames) == 6
    assert frames[-1].seconds == pytest.approx(5 / writer.fps, abs=1e-3 if suffix == '.webm' else 1e-6)


@pytest.mark.parametrize(('fps', 'written'), [(0.0003, 0.002), (5000, 1000), (90000, 1000)])
def test_a_rate_that_no_format_holds_is_approximated_and_logged(tmp_path, caplog, fps, written):
    with VideoWriter(tmp_path / 'a.mp4', (48, 64), fps) as writer:
        writer.write(frames_of(1)[0])
    assert writer.fps == written and f'the nearest it can hold to {fps:g}' in caplog.text


@pytest.mark.parametrize(
    ('fps', 'spacing', 'used'),
    [
        (0.5, 2.0, 0.5),
        (0.01, 100.0, 0.01),
        (480, 1 / 480, 480),
        (600, 1 / 480, 600),  # frames need not come evenly
        (0.5, 0.0, 0.5),  # no time stamps
        (1000, 1 / 30, 30),  # what browsers record
        (90000, 1 / 25, 25),
        (float('nan'), 0.1, 10),
        (0.0, 0.0, DEFAULT_FPS),
    ],
)
def test_an_unusual_frame_rate_must_agree_with_the_time_stamps(fps, spacing, used, caplog):
    capture = FakeCapture(frames_of(3), fps=fps, seconds=[row * spacing for row in range(3)])
    with VideoReader('a.mp4', capture=capture) as reader:
        assert reader.fps == pytest.approx(used) and len(list(reader)) == 3
    assert ('not possible' in caplog.text) == (reader.fps != fps)


@pytest.mark.faults
def test_what_cannot_be_opened_or_written_is_reported_without_lines_of_opencv(tmp_path, capfd):
    (tmp_path / 'bad.mp4').write_bytes(b'\0' * 5000)
    with pytest.raises(DataError, match='no frame can be decoded'):
        VideoReader(tmp_path / 'bad.mp4')
    (tmp_path / 'folder.mp4').mkdir()
    with pytest.raises(DataError, match='not a regular file'):
        VideoWriter(tmp_path / 'folder.mp4', (48, 64), 25)
    with pytest.raises(DiskError, match=r'cannot write a\.mp4') as caught:
        VideoWriter(tmp_path / 'bad.mp4' / 'a.mp4', (48, 64), 25)
    assert 'bad.mp4' in caught.value.why
    with pytest.raises(DiskError, match=r'cannot write wide\.mp4') as caught:
        VideoWriter(tmp_path / 'wide.mp4', (48, 20000), 25)  # H.264 takes 16384, MPEG-4 counts sides in 13 bits
    write(tmp_path / 'good.webm', frames_of(1))
    assert '20000 x 48 pixels' in caught.value.why and not (tmp_path / 'wide.mp4').exists()
    assert capfd.readouterr().err == ''


@pytest.mark.faults
def test_pipes_and_names_that_are_no_text_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mp4')
    for path in (tmp_path / 'pipe.mp4', Path('/dev/zero')):
        with pytest.raises(DataError, match='not a regular file'):
            VideoReader(path)
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/\xff.mp4')
    Path(odd).write_bytes(write(tmp_path / 'a.mp4', frames_of(1)).read_bytes())
    with pytest.raises(DataError, match='its name is not UTF-8'):
        VideoReader(odd)


@pytest.mark.faults
def test_a_wrong_frame_count_is_reported_and_time_stamps_are_kept():
    seconds = [0, 0.01, 0.02, 1.5]
    with VideoReader('a.mkv', capture=FakeCapture(frames_of(4), fps=3.9, announced=121, seconds=seconds)) as reader:
        assert [frame.seconds for frame in reader] == pytest.approx(seconds)
    assert reader.report() == 'read 4 of 121 announced frames'


@pytest.mark.faults
@pytest.mark.parametrize(('gap', 'read', 'skipped'), [(30, 4, 30), (31, 2, 0)])
def test_up_to_30_damaged_frames_are_skipped(gap, read, skipped):
    frames = [*frames_of(2), *[None] * gap, *frames_of(2)]
    with VideoReader('a.mp4', capture=FakeCapture(frames)) as reader:
        assert len(list(reader)) == read
    assert reader.skipped == skipped
    assert ('could not be decoded' in reader.report()) == bool(skipped)


def test_a_camera_gives_the_newest_frame(monkeypatch):
    monkeypatch.setattr('vitdense.video.reader.RECONNECT_AFTER', ())
    capture = FakeCapture(frames_of(30), delay=0.005)
    recorded = []
    with VideoReader(0, capture=capture) as reader:
        for frame in reader:
            recorded.append(frame)
            time.sleep(0.03)
    assert capture.settings[cv2.CAP_PROP_BUFFERSIZE] == 1
    assert 2 <= len(recorded) <= 20  # frames that came meanwhile were dropped
    times = [frame.seconds for frame in recorded]
    assert times == sorted(times) and times[-1] > 0.1
    brightness = [int(frame.image[0, 0, 0]) for frame in recorded]
    assert brightness == sorted(brightness) and brightness[-1] == 10 + 8 * 29


def test_every_nth_frame_between_two_times_is_selected():
    def recorded(**selection):
        selected = Selection(**selection)
        capture = FakeCapture(frames_of(20), fps=10.0, seconds=[number / 10 for number in range(20)])
        with VideoReader('a.mp4', capture=capture, selection=selected) as reader:
            return [round(frame.seconds, 3) for frame in reader], reader.expected

    assert recorded(every=8) == ([0, 0.8, 1.6], 3)
    assert recorded(start=0.55, end=1.0) == ([0.6, 0.7, 0.8, 0.9], 4)
    assert recorded(every=3, start=1.5) == ([1.5, 1.8], 2)
    assert recorded(start=5) == ([], 0)


def test_times_of_a_container_without_stamps_count_frames_before_the_selection():
    with VideoReader('a.mp4', capture=FakeCapture(frames_of(12), fps=10.0), selection=Selection(5, 0.1)) as reader:
        assert [frame.seconds for frame in reader] == pytest.approx([0.1, 0.6, 1.1])


def test_an_interrupted_stream_is_opened_again_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr('vitdense.video.reader.RECONNECT_AFTER', (0.01, 0.01))
    opened = []

    def capture(source):
        opened.append(source)
        frames = {1: frames_of(2), 2: [], 3: frames_of(3)}.get(len(opened), [])
        return FakeCapture(frames, announced=0, delay=0.03)

    address = 'rtsp://me:secret@camera.example/live?key=1'
    with VideoReader(address, capture=capture) as reader:
        assert reader.is_live and reader.name == 'rtsp://camera.example/live'
        frames = list(reader)
    assert 1 <= len(frames) <= 5 and set(opened) == {address} and len(opened) == 5
    assert 'connected again' in caplog.text and 'tried again' in caplog.text and 'secret' not in caplog.text


def test_a_stream_that_cannot_be_opened_is_one_sentence_without_the_password():
    with pytest.raises(DataError, match='no frame can be read') as caught:
        VideoReader('rtsp://me:secret@camera.example/live', capture=FakeCapture([], announced=0))
    assert 'secret' not in str(caught.value)


def test_a_video_file_at_an_address_is_read_as_a_file():
    with VideoReader('https://example.org/a.mp4', capture=FakeCapture(frames_of(6), delay=0.01)) as reader:
        assert not reader.is_live and reader.expected == 6 and len(list(reader)) == 6


def test_a_missing_camera_is_one_sentence_with_the_cameras_there_are():
    with pytest.raises(DataError, match=r'camera 97 cannot be opened \(cameras of this machine: ') as caught:
        VideoReader(97)
    assert caught.value.exit_code == 3 and '\n' not in caught.value.message


def test_stopping_early_ends_the_thread(tmp_path):
    with VideoReader(write(tmp_path / 'a.mp4', frames_of(24))) as reader:
        next(iter(reader))
    assert not reader._thread.is_alive()


def test_the_real_video(shared):
    with VideoReader(shared / 'video' / 'car-detection.mp4') as reader:
        assert reader.fps == 12.5 and reader.size == (432, 768) and reader.announced == 377
        times = []
        for frame in reader:
            times.append(frame.seconds)
            if len(times) == 10:
                break
    assert times == pytest.approx([index * 0.08 for index in range(10)])


@pytest.fixture(autouse=True)
def quiet_ffmpeg(caplog):
    caplog.set_level(logging.INFO, 'vitdense')
