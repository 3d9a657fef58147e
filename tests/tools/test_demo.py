"""The demo: what it writes, what it skips, and how it ends."""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import tools.demo as tools_demo
from tools.demo import main_classes
from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.checkpoints.model_folder import save_model_folder
from vitdense.commands.parser import run
from vitdense.data.coco.parse import read_coco
from vitdense.heads.detr.detr import DetrHead
from vitdense.heads.linear import LinearHead
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.reporting import console
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import SoftmaxCrossEntropy
from vitdense.tasks.semantic import SemanticTask
from vitdense.video.reader import VideoReader
from vitdense.video.writer import VideoWriter, count_frames

DEMO = Path(__file__).resolve().parents[2] / 'tools' / 'demo.py'
CLASSES = ['sky', 'grass', 'straße']


def path_of(kind: type) -> str:
    return f'{kind.__module__}.{kind.__qualname__}'


@pytest.fixture(scope='module')
def model_folder(tmp_path_factory) -> Path:
    """A tiny random model as training would leave it."""
    recipe = dict(
        type=path_of(DenseModel),
        network=dict(
            type=path_of(SharedNetwork),
            backbone=dict(
                type=path_of(ViT),
                name='vit_tiny_patch16_224',
                patch_size=16,
                img_size=64,
                timm_args=dict(embed_dim=24, depth=2, num_heads=2),
            ),
            branches=dict(
                sem=dict(adapter=dict(type=path_of(PlainMaps)), head=dict(type=path_of(LinearHead), norm='none'))
            ),
        ),
        tasks=dict(sem=dict(type=path_of(SemanticTask))),
    )
    torch.manual_seed(0)
    classes = {'semantic': CLASSES}
    model = build(recipe, classes=classes)
    folder = tmp_path_factory.mktemp('model') / 'model'
    save_model_folder(folder, recipe, model.state_dict(), metainfo={'classes': classes, 'palette': {}})
    return folder


@pytest.fixture(scope='module')
def detector_folder(tmp_path_factory) -> Path:
    """A tiny random detector as training would leave it."""
    head = dict(type=path_of(DetrHead), channels=16, num_heads=2, ffn_dim=16, num_queries=4)
    head |= dict(num_encoder_layers=1, num_decoder_layers=1)
    backbone = dict(type=path_of(ViT), name='vit_tiny_patch16_224', img_size=64)
    backbone |= dict(timm_args=dict(embed_dim=24, depth=2, num_heads=2))
    branches = dict(det=dict(adapter=dict(type=path_of(PlainMaps)), head=head))
    task = dict(type=path_of(DetectionTask), classification=dict(type=path_of(SoftmaxCrossEntropy)))
    network = dict(type=path_of(SharedNetwork), backbone=backbone, branches=branches)
    recipe = dict(type=path_of(DenseModel), network=network, tasks=dict(det=task))
    torch.manual_seed(0)
    classes = {'labels': ['car', 'bus', 'bicycle']}
    folder = tmp_path_factory.mktemp('detector') / 'model'
    state = build(recipe, classes=classes).state_dict()
    save_model_folder(folder, recipe, state, metainfo={'classes': classes, 'palette': {}})
    return folder


@pytest.fixture
def demo(model_folder, tmp_path, capsys):
    """Run the tool in this process; return its exit code, its results and what it printed."""
    spec = importlib.util.spec_from_file_location('demo_tool', DEMO)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*words, model=True):
        out = tmp_path / 'out'
        options = ['--model', str(model_folder), '--out', str(out), '--device', 'cpu', '--amp', 'off'] if model else []
        with pytest.raises(SystemExit) as left:
            run(tool.main, [*map(str, words), *options])
        results = out / 'results.json'
        printed = capsys.readouterr()
        content = json.loads(results.read_text(encoding='utf-8')) if results.exists() else None
        return left.value.code, content, printed.out + printed.err

    return call


def image(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def video(path: Path, count: int, size: tuple[int, int] = (48, 64), fps: float = 10.0) -> Path:
    generator = np.random.default_rng(0)
    with VideoWriter(path, size, fps, encoder='opencv') as writer:
        for _ in range(count):
            writer.write(generator.integers(0, 255, (*size, 3), dtype=np.uint8))
    return path


def bomb(path: Path, side: int = 60000) -> Path:
    """Write a PNG of some 70 bytes that declares side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    content = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + content)
    return path


def test_images_of_a_folder(demo, tmp_path):
    sizes = {'a.jpg': (48, 64), 'b.png': (64, 48), 'deep/a.jpg': (33, 57)}
    for seed, (name, size) in enumerate(sizes.items()):
        image(tmp_path / 'in' / name, *size, seed)
    code, content, printed = demo(tmp_path / 'in', '--labels', '--batch', '2')
    assert code == 0 and content['count'] == 3 and content['skipped'] == []
    for entry in content['results']:
        name = str(Path(entry['file']).relative_to(tmp_path / 'in'))
        assert tuple(entry['size']) == sizes[name]
        assert Path(entry['output']) == tmp_path / 'out' / name
        labels = np.asarray(Image.open(entry['labels']['sem']))
        assert labels.shape == sizes[name] and labels.max() < 3
        shares = {CLASSES[index]: round(float((labels == index).mean()), 4) for index in np.unique(labels)}
        assert entry['heads']['sem'] == {name: share for name, share in shares.items() if share}
        assert set(entry['ms']) == {'load', 'preprocess', 'network', 'postprocess', 'draw', 'write'}
        with Image.open(entry['output']) as overlay:
            assert overlay.width > sizes[name][1]  # the legend stands beside the image
    assert '3 images in' in printed and 'network' in printed and 'main classes' in printed


def test_without_legend_the_overlay_has_the_size_of_the_image(demo, tmp_path):
    code, content, _ = demo(image(tmp_path / 'a.png'), '--no-legend', '--alpha', '0.3')
    assert code == 0
    assert Image.open(content['results'][0]['output']).size == (64, 48)


def test_inputs_are_never_overwritten(demo, tmp_path):
    source = image(tmp_path / 'out' / 'a.png')
    before = source.read_bytes()
    code, content, _ = demo(source)
    assert code == 0 and source.read_bytes() == before
    assert content['results'][0]['output'] != str(source)


@pytest.mark.faults
def test_bad_files_of_a_folder_are_skipped_and_counted(demo, tmp_path):
    image(tmp_path / 'in' / 'a.png')
    image(tmp_path / 'in' / 'c.jpg')
    bomb(tmp_path / 'in' / 'bomb.png')
    (tmp_path / 'in' / 'z.mp4').write_bytes(b'')
    code, content, printed = demo(tmp_path / 'in')
    assert code == 0 and content['count'] == 2
    assert [Path(entry['file']).name for entry in content['skipped']] == ['bomb.png', 'z.mp4']
    assert 'skipped bomb.png: 3600.0 Mpx > limit 180' in printed
    assert '2 skipped' in printed


@pytest.mark.faults
def test_a_single_bad_file_ends_with_3(demo, tmp_path):
    code, content, printed = demo(bomb(tmp_path / 'bomb.png'))
    assert code == 3 and content is None
    assert 'error[data]: bomb.png: 3600.0 Mpx > limit 180' in printed


@pytest.mark.faults
def test_a_folder_of_bad_files_ends_with_3(demo, tmp_path):
    for name in ('a.png', 'b.jpg'):
        (tmp_path / name).write_bytes(b'no image')
    code, _, printed = demo(tmp_path / '*.*')
    assert code == 3 and 'none of 2 inputs could be read' in printed


@pytest.mark.faults
@pytest.mark.parametrize('mode', ['I;16', 'CMYK', 'LA', 'P', 'RGBA', '1'])
def test_images_of_every_mode(demo, tmp_path, mode):
    if mode == 'I;16':
        source = Image.fromarray(np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64))
    else:
        source = Image.open(image(tmp_path / 'rgb.png')).convert(mode)
    path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    source.save(path)
    code, content, _ = demo(path)
    assert code == 0 and content['count'] == 1


def test_a_video(demo, tmp_path):
    source = video(tmp_path / 'a.mp4', 7, fps=10.0)
    code, content, printed = demo(source, '--batch', '3')
    entry = content['results'][0]
    assert code == 0 and entry['read'] == entry['announced'] == 7 and entry['fps'] == 10
    assert [frame['seconds'] for frame in entry['frames']] == pytest.approx([index / 10 for index in range(7)])
    assert all(sum(frame['sem'].values()) == pytest.approx(1, abs=1e-3) for frame in entry['frames'])
    assert sum(entry['heads']['sem'].values()) == pytest.approx(1, abs=1e-3)
    assert Path(entry['output']) == tmp_path / 'out' / 'a.mp4' and count_frames(entry['output']) == 7
    with VideoReader(entry['output']) as reader:
        assert reader.fps == 10
    assert '7 frames in' in printed and 'time of one frame' in printed


def test_options_of_videos(demo, tmp_path):
    source = video(tmp_path / 'a.avi', 6)
    code, content, _ = demo(source, '--max-frames', '2', '--video-format', 'webm', '--fps', '5')
    entry = content['results'][0]
    assert code == 0 and entry['read'] == 2 and entry['output'].endswith('a.webm')
    with VideoReader(entry['output']) as reader:
        assert len(list(reader)) == 2 and reader.fps == 5
    code, content, _ = demo(source, '--no-save-video')
    assert code == 0 and content['results'][0]['output'] is None and content['count'] == 6


@pytest.mark.faults
@pytest.mark.parametrize('case', ['truncated', 'odd size', 'one frame', 'empty', 'damaged'])
def test_broken_videos(demo, tmp_path, case):
    size = (97, 131) if case == 'odd size' else (48, 64)
    source = video(tmp_path / 'a.avi', 1 if case == 'one frame' else 20, size)
    if case == 'truncated':
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 3])
    if case == 'empty':
        source.write_bytes(b'')
    if case == 'damaged':
        data = source.read_bytes()
        source.write_bytes(data[:300] + bytes(len(data) - 300))
    code, content, printed = demo(source, '--save-video')
    if case in ('empty', 'damaged'):
        assert code == 3 and 'a.avi: no frame can be decoded' in printed
        return
    entry = content['results'][0]
    assert code == 0
    assert count_frames(entry['output']) == entry['read'] == {'odd size': 20, 'one frame': 1}.get(case, entry['read'])
    assert 1 <= entry['read'] <= 20
    capture = cv2.VideoCapture(str(source))
    for frame in entry['frames']:
        assert capture.read()[0]
        assert frame['seconds'] == pytest.approx(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, abs=1e-6)


@pytest.mark.faults
@pytest.mark.parametrize('case', ['uneven', 'two sizes'])
def test_odd_videos_are_written_whole_with_their_times(demo, tmp_path, case, monkeypatch):
    av = pytest.importorskip('av')
    seconds = [0, 0.04, 0.52, 0.56, 2.0] if case == 'uneven' else [0, 0.04, 0.08]
    parts = [(48, 64)] if case == 'uneven' else [(48, 64), (96, 128)]
    source = tmp_path / ('a.mkv' if case == 'uneven' else 'a.ts')
    for size in parts:
        path = tmp_path / f'part{size[0]}{source.suffix}'
        with av.open(str(path), 'w') as container:
            stream = container.add_stream('mpeg2video' if case == 'two sizes' else 'mpeg4', rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p'
            for number, time in enumerate(seconds):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 10 * number, np.uint8), format='rgb24')
                frame.pts = round(25 * time)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with source.open('ab') as joined:
            joined.write(path.read_bytes())
    shares = []
    monkeypatch.setattr('rich.progress.Progress.update', lambda self, task, **now: shares.append(now))
    code, content, _ = demo(source)
    entry = content['results'][0]
    assert code == 0 and count_frames(entry['output']) == entry['read'] == count_frames(source) >= 5
    assert all(now['completed'] <= now['total'] for now in shares if now.get('total') and 'completed' in now)
    capture = cv2.VideoCapture(str(source))
    times = [capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 for _ in iter(lambda: capture.read()[0], False)]
    rows = zip(entry['frames'], times, strict=True)
    assert all(frame['seconds'] == pytest.approx(time, abs=1e-6) for frame, time in rows if time)  # 0: unknown
    if case == 'uneven':
        with VideoReader(entry['output']) as reader:
            assert [frame.seconds for frame in reader] == pytest.approx(seconds, abs=1e-3)


def test_images_and_videos_together(demo, tmp_path):
    image(tmp_path / 'in' / 'b.png')
    video(tmp_path / 'in' / 'a.mp4', 2)
    code, content, _ = demo(tmp_path / 'in')
    assert code == 0 and content['count'] == 3
    assert sorted(entry['kind'] for entry in content['results']) == ['image', 'video']


@pytest.mark.faults
def test_what_cannot_be_written_does_not_end_the_others(demo, tmp_path, model_folder):
    image(tmp_path / 'in' / 'a.png')
    image(tmp_path / 'in' / 'b' / 'b.png')
    for name in ('c.mp4', 'd/d.mp4', 'e.mp4'):
        (tmp_path / 'in' / name).parent.mkdir(exist_ok=True)
        video(tmp_path / 'in' / name, 2, fps=211.222)
    (tmp_path / 'out').mkdir()
    for name in ('b', 'd'):
        (tmp_path / 'out' / name).write_text('a file where a folder is needed')
    code, content, printed = demo(tmp_path / 'in', tmp_path / 'gone.jpg')
    assert code == 2  # that of the first input that was skipped for another reason than its content
    assert [Path(entry['file']).name for entry in content['results']] == ['a.png', 'c.mp4', 'e.mp4']
    assert [Path(entry['file']).name for entry in content['skipped']] == ['gone.jpg', 'b.png', 'd.mp4']
    assert content['results'][1]['fps'] == pytest.approx(211.22) == content['results'][1]['output_fps']
    assert '3 skipped' in printed
    words = tmp_path / 'in/b/b.png', tmp_path / 'in/d/d.mp4', '--model', model_folder, '--out', tmp_path / 'out/b'
    code, _, printed = demo(*words, model=False)
    assert code == 7 and 'cannot make the folder' in printed  # before any is read


@pytest.mark.faults
@pytest.mark.parametrize('batch', [1, 3])
def test_an_image_that_needs_more_memory_is_skipped(demo, tmp_path, monkeypatch, batch):
    for name, width in (('a', 64), ('b', 80), ('c', 64)):
        image(tmp_path / 'in' / f'{name}.png', width=width)
    original = Predictor._run

    def run(self, items):
        if any(item.image.shape[-1] == 80 for item in items):
            torch.empty(2**60)  # torch's own error
        return original(self, items)

    monkeypatch.setattr(Predictor, '_run', run)
    code, content, printed = demo(tmp_path / 'in', '--batch', batch)
    assert code == 6 and [Path(entry['file']).name for entry in content['results']] == ['a.png', 'c.png']
    assert 'skipped b.png: not enough memory' in printed


@pytest.mark.faults
def test_names_that_are_no_text_are_kept(demo, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/in/\xffstra\xc3\x9fe.png')
    image(Path(odd))
    code, content, _ = demo(tmp_path / 'in')
    entry = content['results'][0]
    assert code == 0 and entry['file'] == odd and Path(entry['output']).is_file()
    text = (tmp_path / 'out/results.json').read_text(encoding='utf-8')
    assert 'straße' in text  # readable, and the byte that is no text is escaped


def test_results_list_the_classes(demo, tmp_path, detector_folder):
    source = image(tmp_path / 'a.png')
    _, content, _ = demo(source)
    assert content['classes'] == {'sem': [{'name': name, 'class_id': row} for row, name in enumerate(CLASSES)]}
    known = tmp_path / 'known'
    shutil.copytree(detector_folder, known)
    description = json.loads((known / 'model.json').read_text())
    description['category_ids'] = {'labels': [3, 6, 2]}
    (known / 'model.json').write_text(json.dumps(description))
    words = (source, '--model', known, '--out', tmp_path / 'out', '--min-score', '0', '--device', 'cpu')
    _, content, _ = demo(*words, model=False)
    assert content['classes']['det'][1] == {'name': 'bus', 'class_id': 1, 'category_id': 6}
    for each in content['results'][0]['objects']['det']:
        assert {key: each[key] for key in ('name', 'class_id', 'category_id')} in content['classes']['det']


def test_a_video_with_the_suffix_of_an_image_is_a_video(demo, tmp_path):
    (tmp_path / 'in').mkdir()
    video(tmp_path / 'in' / 'a.mp4', 2).rename(tmp_path / 'in' / 'a.jpg')
    code, content, _ = demo(tmp_path / 'in')
    assert code == 0 and content['results'][0]['kind'] == 'video' and content['count'] == 2


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['a.jpg'], 'give the model either as --model DIR, or as --config C --checkpoint W'),
        (['a.jpg', '--config', 'c.py'], 'give the model either'),
        (['a.jpg', '--model', 'm', '--divice', 'cpu'], "did you mean '--device'?"),
        (['missing.jpg', '--model', 'm'], "'missing.jpg' names no image, video or camera"),
        (['a.jpg', '--model', 'm', '--alpha', '2'], 'is not in 0 ... 1'),
        (['a.jpg', '--model', 'm', '--batch', '0'], 'is not a whole number above 0'),
        (['a.jpg', '--model', 'm', '--fps', '0'], '--fps is a frame rate above 0'),
    ],
)
def test_wrong_words_end_with_2(demo, words, message):
    code, _, printed = demo(*words, model=False)
    assert code == 2 and message in printed and 'fix:' in printed


def test_a_font_that_is_none_ends_with_2(demo, tmp_path):
    code, _, printed = demo(image(tmp_path / 'a.png'), '--font', tmp_path / 'a.png')
    assert code == 2 and 'a.png is no font' in printed


def test_tta_needs_a_model_that_has_it(demo, tmp_path):
    code, _, printed = demo(image(tmp_path / 'a.png'), '--tta')
    assert code == 2 and 'no test-time augmentation' in printed


def interrupt_after(monkeypatch, calls: int) -> None:
    """Press Ctrl-C when the predictor is called once more than `calls` times."""
    original, count = Predictor.__call__, iter(range(10**6))

    def call(self, image):
        if next(count) == calls:
            raise KeyboardInterrupt
        return original(self, image)

    monkeypatch.setattr(Predictor, '__call__', call)


def test_ctrl_c_ends_a_camera_well(demo, monkeypatch):
    class Camera:
        def isOpened(self):
            return True

        def set(self, key, value):
            return True

        def get(self, key):
            return 0.0

        def release(self):
            pass

        def read(self):
            time.sleep(0.002)
            return True, np.full((48, 64, 3), 100, np.uint8)

    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: Camera() if source == 0 else real(source))
    interrupt_after(monkeypatch, 3)
    code, content, _ = demo('0')
    entry = content['results'][0]
    assert code == 0 and entry['kind'] == 'camera' and entry['read'] == 3
    assert Path(entry['output']).name == 'camera0.mp4' and count_frames(entry['output']) == 3
    assert entry['frames'][2]['seconds'] > entry['frames'][0]['seconds'] > 0


def test_ctrl_c_in_a_video_keeps_what_was_seen(demo, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 4)
    code, content, _ = demo(video(tmp_path / 'a.mp4', 20))
    entry = content['results'][0]
    assert code == 130 and entry['read'] == 4 and count_frames(entry['output']) == 4


def test_a_missing_camera_ends_with_3(demo):
    code, _, printed = demo('97')
    assert code == 3 and 'cameras of this machine' in printed


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='other systems always have a display')
def test_show_without_display_fails_before_anything_is_loaded(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ('DISPLAY', 'WAYLAND_DISPLAY')}
    words = [sys.executable, '-X', 'importtime', str(DEMO), 'a.jpg', '--model', 'm', '--show']
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and 'error[config]: --show needs a display' in done.stderr
    assert ' torch\n' not in done.stderr


def test_help_is_immediate():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-X', 'importtime', str(DEMO), '--help'], capture_output=True, text=True)
    assert time.perf_counter() - start < 1 and done.returncode == 0 and 'INPUT' in done.stdout
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {'torch', 'timm', 'cv2', 'numpy', 'mmengine'}


def test_a_detector_lists_its_objects_and_counts_them_by_class(demo, detector_folder, tmp_path):
    sources = image(tmp_path / 'a.png'), video(tmp_path / 'b.mp4', count=3)
    words = (*sources, '--model', detector_folder, '--out', tmp_path / 'out', '--min-score', '0', '--device', 'cpu')
    code, content, printed = demo(*words, model=False)
    assert code == 0
    first, film = content['results']
    objects = first['objects']['det']
    assert len(objects) == sum(first['heads']['det'].values()) == 4
    for each in objects:
        left, top, right, bottom = each['box']
        assert each['name'] in ('car', 'bus', 'bicycle') and 0 <= each['score'] <= 1
        assert 0 <= left <= right <= 64 and 0 <= top <= bottom <= 48
    assert sum(film['heads']['det'].values()) == pytest.approx(4, abs=1e-3)  # the mean over its frames
    assert len(film['frames'][2]['objects']['det']) == 4
    name, count = next(iter(first['heads']['det'].items()))
    assert f'{name} {count} ' in printed
    _, content, printed = demo(*words[:-4], '--min-score', '1', '--device', 'cpu', model=False)
    assert content['results'][0]['objects'] == {'det': []} and 'nothing' in printed


def test_the_objects_of_images_are_a_coco_file(demo, detector_folder, tmp_path):
    sources = image(tmp_path / 'a.png'), image(tmp_path / 'more/b.png')
    words = (*sources, '--model', detector_folder, '--out', tmp_path / 'out', '--min-score', '0', '--coco')
    _, content, _ = demo(*words, '--device', 'cpu', model=False)
    path = tmp_path / 'out/coco.json'
    arrays, info = read_coco(path)
    assert info.counts == {} and info.names == ['car', 'bus', 'bicycle'] and len(arrays.sizes) == 2
    assert [arrays.file_names[row] for row in (0, 1)] == ['a.png', 'more/b.png']
    rows = json.loads(path.read_text())['annotations']
    first, second = ([row for row in rows if row['image_id'] == number] for number in (1, 2))
    listed = [result['objects']['det'] for result in content['results']]
    for objects, annotations in zip(listed, (first, second), strict=True):
        assert [each['score'] for each in objects] == pytest.approx([row['score'] for row in annotations], abs=1e-4)
        assert [each['class_id'] for each in objects] == [row['category_id'] for row in annotations]


def test_every_second_frame_of_a_part_is_written_at_half_the_rate_and_printed(demo, tmp_path):
    source = video(tmp_path / 'a.avi', 10)
    words = ('--every', '2', '--start', '0:00.1', '--end', '0.5', '--json')
    _, content, printed = demo(source, *words)
    entry = content['results'][0]
    fps = entry['fps']
    wanted = [number / fps for number in range(10) if 0.1 <= number / fps < 0.5][::2]
    assert [frame['seconds'] for frame in entry['frames']] == pytest.approx(wanted, abs=1e-5)
    assert entry['output_fps'] == pytest.approx(fps / 2) and count_frames(entry['output']) == len(wanted)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{')]
    assert [line['seconds'] for line in lines] == [frame['seconds'] for frame in entry['frames']]
    assert all(line['file'] == str(source) and 'heads' in line for line in lines)
    assert printed.index('{') == 0  # other lines are on stderr
    assert 'announced frames' not in printed  # frames were left out on purpose


def test_objects_of_a_video_are_followed_and_counted(demo, detector_folder, tmp_path):
    pytest.importorskip('trackers')
    words = (video(tmp_path / 'b.mp4', count=6), '--model', detector_folder, '--out', tmp_path / 'out', '--json')
    words += ('--min-score', '0', '--device', 'cpu', '--count-line', '0', '24', '64', '24')
    code, content, printed = demo(*words, model=False)
    entry = content['results'][0]
    assert code == 0 and set(entry['counts']) == {'tracks', 'in', 'out'} and count_frames(entry['output']) == 6
    objects = entry['frames'][-1]['objects']['det']
    assert entry['counts']['tracks'] >= len({each['track_id'] for each in objects if 'track_id' in each}) > 0
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{')]
    assert lines[-1]['counts'] == entry['counts']
    tracks, inwards, outwards = (entry['counts'][name] for name in ('tracks', 'in', 'out'))
    assert f'b.mp4: {tracks} track' in printed and f'across the line: {inwards} in, {outwards} out' in printed


def test_a_part_beyond_the_end_of_a_video_is_a_bad_input(demo, tmp_path):
    source = video(tmp_path / 'a.avi', 10)
    code, content, printed = demo(source, '--start', '90')
    assert code == 3 and content is None and not (tmp_path / 'out/a.mp4').exists()
    assert 'error[data]: a.avi: no frame is shown from 90 s on' in printed and 'the video is 1.0 s long' in printed
    code, content, printed = demo(source, image(tmp_path / 'b.png'), '--start', '0.51', '--end', '0.55')
    assert code == 0 and content['skipped'] == [{'file': str(source), 'reason': content['skipped'][0]['reason']}]
    assert 'skipped a.avi: no frame is shown from 0.51 s on and before 0.55 s' in printed and '1 image in' in printed
    code, content, printed = demo(source, '--every', '50')
    assert code == 0 and content['results'][0]['read'] == 1 and '1 frame in' in printed


def test_lines_of_progress_are_not_on_stdout_with_json(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, 'LINE_EVERY', 0.0)
    words = [image(tmp_path / 'b.png'), video(tmp_path / 'a.avi', 3), '--model', model_folder, '--json']
    assert tools_demo.main([*map(str, words), '--out', str(tmp_path / 'out'), '--device', 'cpu', '--amp', 'bf16']) == 0
    printed = capsys.readouterr()
    assert len([json.loads(line) for line in printed.out.splitlines()]) == 4
    assert 'predict: 1 of 1 images' in printed.err and 'predict: 3 of 3 frames of a.avi' in printed.err
    assert '\ncpu, bfloat16, ' in printed.err and '1 image and 3 frames in' in printed.err
    content = json.loads((tmp_path / 'out/results.json').read_text())
    assert (content['device'], content['precision']) == ('cpu', 'bfloat16')


def test_ten_frames_of_a_real_video(demo, shared):
    code, content, _ = demo(shared / 'video' / 'car-detection.mp4', '--max-frames', '10')
    entry = content['results'][0]
    assert code == 0 and entry['size'] == [432, 768] and count_frames(entry['output']) == 10
    assert [frame['seconds'] for frame in entry['frames']] == pytest.approx([index * 0.08 for index in range(10)])


def test_large_images_are_looked_at_in_windows(demo, detector_folder, tmp_path):
    source = image(tmp_path / 'a.png', height=90, width=130)
    code, content, _ = demo(source, '--tile', '32', '--batch', '4', '--labels')
    assert code == 0 and content['results'][0]['size'] == [90, 130]
    with Image.open(next(iter(content['results'][0]['labels'].values()))) as labels:
        assert labels.size == (130, 90)
    words = (source, '--model', detector_folder, '--out', tmp_path / 'out', '--min-score', '0', '--device', 'cpu')
    code, content, _ = demo(*words, '--tile', '48', model=False)
    assert code == 0 and len(content['results'][0]['objects']['det']) > 4  # of several windows


def test_the_classes_of_several_heads_have_their_names() -> None:
    shares = {'cat': 0.5, 'dog': 0.25}
    assert main_classes({'heads': {'sem': shares}}) == 'cat 50%, dog 25%'
    both = {'heads': {'sem': shares, 'det': {'dog': 2}, 'cls': {}}, 'objects': {'det': []}}
    assert main_classes(both) == 'sem: cat 50%, dog 25%; det: dog 2; cls: nothing'


@pytest.mark.faults
def test_outputs_that_cannot_be_written_are_noticed_before_the_model_is_read(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    source = image(tmp_path / 'a.png')
    with pytest.raises(SystemExit) as left:
        run(tools_demo.main, [str(source), '--model', str(tmp_path / 'none'), '--out', str(tmp_path / 'file' / 'out')])
    assert left.value.code == 7 and 'fix:   choose another folder' in capsys.readouterr().err
