"""The server: the same predictions as the predictor, limits, and nothing that a client could open."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.test_predictor import image, tiny_model
from tools import serve
from vitdense.errors import VitDenseError
from vitdense.inference.predictor import Predictor
from vitdense.inference.result import Result
from vitdense.serving.batching import Batcher, QueueFullError
from vitdense.types import ImageClass, Instances, SemanticMap

pytest.importorskip('httpx')
TestClient = pytest.importorskip('fastapi.testclient').TestClient
app = pytest.importorskip('vitdense.serving.app')
runs = pytest.importorskip('vitdense.serving.responses').runs
META = {
    'classes': {'labels': ['car', 'bus'], 'semantic': ['road', 'sky'], 'image_label': ['day', 'night']},
    'category_ids': {'labels': [3, 7]},
    'head_fields': {'det': 'labels', 'sem': 'semantic', 'cls': 'image_label'},
    'operating_points': {'det': {'threshold': [None, 0.35]}},
}


class Painter:
    """A predictor whose objects, regions and class follow from the brightness of an image."""

    batch_size = 4
    value_range = None
    metainfo = META

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.hold = threading.Event()
        self.hold.set()

    def read(self, image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image.copy()).permute(2, 0, 1)

    def __call__(self, images: list[torch.Tensor]) -> list[Result]:
        self.hold.wait(10)
        self.batches.append(len(images))
        return [self._one(img) for img in images]

    def _one(self, img: torch.Tensor) -> Result:
        height, width = img.shape[-2:]
        if img.max() == 255 and img.min() == 255:
            raise RuntimeError('an image of white')
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, : height // 2] = True
        actual = Instances(torch.tensor([[0.0, 0, width, height / 2]]), torch.tensor([0.4]), torch.tensor([1]), mask)
        heads = {
            'det': actual,
            'sem': SemanticMap((img[0] > 100).to(torch.uint8)),
            'cls': ImageClass(torch.tensor([0.2, 0.8])),
        }
        return Result(img.permute(1, 2, 0).numpy(), heads, self.metainfo, times={'network': 0.01})


@contextmanager
def serving(**limits: Any) -> Iterator[tuple[Any, Painter]]:
    painter = Painter()
    served = app.create_app(painter, name='a model', limits=app.RequestLimits(**limits), hosts=['testserver'])
    with TestClient(served, raise_server_exceptions=False) as client:
        yield client, painter


def post(client: Any, content: bytes) -> Any:
    return client.post('/api/image', content=content)


def png(shade: int = 200, size: tuple[int, int] = (30, 20)) -> bytes:
    content = io.BytesIO()
    Image.new('RGB', size, (shade, 0, 0)).save(content, format='PNG')
    return content.getvalue()


def white() -> bytes:
    content = io.BytesIO()
    Image.new('RGB', (8, 8), 'white').save(content, format='PNG')
    return content.getvalue()


def test_the_response_to_an_image_has_objects_regions_and_class():
    with serving() as (client, _):
        record = client.post('/api/image', content=png()).json()
    assert record['size'] == [20, 30] and record['milliseconds'] == {'network': 10.0}
    (bus,) = record['objects']['det']
    assert (bus['name'], bus['class_id'], bus['category_id'], bus['score']) == ('bus', 1, 7, 0.4)
    assert bus['box'] == [0, 0, 30, 10] and bus['mask'] == [0, 300, 300]
    assert record['image_class']['cls'][0] == {'name': 'night', 'score': 0.8}
    with Image.open(io.BytesIO(base64.b64decode(record['semantic']['sem']))) as labels:
        assert labels.size == (30, 20) and np.asarray(labels).min() == 1


def test_the_least_score_is_that_of_the_request():
    with serving() as (client, _):
        assert client.post('/api/image?min_score=0.5', content=png()).json()['objects'] == {'det': []}
        assert client.post('/api/image?min_score=0.001', content=png()).status_code == 422


def test_without_a_least_score_the_thresholds_of_the_model_count(monkeypatch: pytest.MonkeyPatch):
    with serving() as (client, painter):
        assert len(client.post('/api/image', content=png()).json()['objects']['det']) == 1  # 0.4 of a bus
        points = {'operating_points': {'det': {'threshold': [0.1, 0.45]}}}
        monkeypatch.setattr(painter, 'metainfo', META | points, raising=False)
        assert client.post('/api/image', content=png()).json()['objects'] == {'det': []}
        assert [row['threshold'] for row in client.get('/api/model').json()['heads'][0]['classes']] == [0.3, 0.35]


def test_classes_and_endpoints_are_described():
    with serving() as (client, _):
        model = client.get('/api/model').json()
        described = client.get('/openapi.json').json()
    assert [(head['name'], head['kind']) for head in model['heads']] == [
        ('det', 'objects'),
        ('sem', 'semantic'),
        ('cls', 'image_class'),
    ]
    assert model['heads'][0]['classes'][1]['category_id'] == 7 and len(model['heads'][0]['classes'][1]['color']) == 3
    assert {'/api/model', '/api/image', '/api/video'} == set(described['paths'])
    assert 'requestBody' in described['paths']['/api/image']['post']
    responses = [
        part for path in described['paths'].values() for each in path.values() for part in each['responses'].items()
    ]
    faults = {code: each['content']['application/json']['schema']['$ref'] for code, each in responses if code != '200'}
    assert faults.keys() == {'403', '413', '415', '422', '429', '500'}
    assert {name.rpartition('/')[2] for name in faults.values()} == {'ErrorRecord'}
    assert described['components']['schemas']['ErrorRecord']['properties']['detail']['type'] == 'string'


@pytest.mark.parametrize(
    ('content', 'code', 'words'),
    [
        (b'', 422, 'the file is empty'),
        (b'hello', 422, 'the image'),
        (b'/etc/passwd', 422, 'the image'),
        (b'%!PS-Adobe-3.0', 422, 'PostScript'),
        (png()[:60], 422, 'the image'),
        (png(size=(400, 300)), 413, 'Mpx > limit'),
        (bytes(5000), 413, '4,000 bytes'),
    ],
)
def test_what_is_no_image_or_too_large_is_refused(content, code, words):
    with serving(pixels=100_000, image_bytes=4000) as (client, painter):
        output = client.post('/api/image', content=content)
    assert output.status_code == code and words in output.json()['detail'] and painter.batches == []


@pytest.mark.parametrize(
    ('url', 'words'),
    [
        ('/api/image?conf=0.5', "no parameter 'conf': the parameters are min_score"),
        ('/api/image?min_scor=0.5', "did you mean 'min_score'?"),
        ('/api/video?every=2&fps=3', 'the parameters are min_score, every'),
        ('/api/image?min_score=abc', "min_score='abc': "),
        ('/api/image?min_score=7', "min_score='7': "),
        ('/api/video?every=0', "every='0': "),
    ],
)
def test_a_wrong_or_unknown_parameter_is_refused_by_name(url, words):
    with serving() as (client, painter):
        output = client.post(url, content=png())
        model = client.get('/api/model?head=det')
    assert (output.status_code, model.status_code) == (422, 422) and painter.batches == []
    assert words in output.json()['detail'] and "'head': there are none" in model.json()['detail']


@pytest.mark.parametrize('path', ['/api/image', '/api/video'])
def test_a_form_is_refused_with_the_command_that_sends_the_file(path):
    with serving() as (client, _):
        output = client.post(f'{path}?min_score=0.5', files={'file': ('photo.png', png())})
    assert output.status_code == 415
    assert f'curl --data-binary @FILE http://testserver{path}' in output.json()['detail']


def test_an_error_of_the_model_has_the_form_of_the_others():
    with serving() as (client, _):
        output = client.post('/api/image', content=white())
    assert output.status_code == 500 and 'RuntimeError' in output.json()['detail']


def test_the_tool_prints_a_line_before_the_model_is_read(tmp_path, capsys):
    with pytest.raises(VitDenseError):
        serve.main([str(tmp_path / 'none')])
    assert capsys.readouterr().err == f'loading {tmp_path}/none ...\n'


def test_images_that_arrive_while_the_model_works_go_through_it_together(monkeypatch):
    batchers: list[Batcher] = []
    monkeypatch.setattr(app, 'Batcher', lambda *args, **more: batchers.append(Batcher(*args, **more)) or batchers[-1])
    with serving() as (client, painter):
        painter.hold.clear()
        shades = list(range(10, 100, 10))
        outputs: dict[int, Any] = {}
        threads = [
            threading.Thread(
                target=lambda k=k: outputs.update({k: client.post('/api/image', content=png(size=(k, 9)))})
            )
            for k in shades
        ]
        for thread in threads:
            thread.start()
        while batchers[0]._queue.qsize() < 5:  # the first ones have been taken by the model
            time.sleep(0.01)
        painter.hold.set()
        for thread in threads:
            thread.join()
    assert {k: output.json()['size'] for k, output in outputs.items()} == {k: [9, k] for k in shades}
    assert sum(painter.batches) == 9 and max(painter.batches) == 4


def test_one_image_that_fails_leaves_the_others_of_its_batch():
    painter = Painter()

    async def two() -> list[Any]:
        async with Batcher(painter, most_waiting=9) as batcher:
            images = [torch.full((3, 8, 8), shade, dtype=torch.uint8) for shade in (50, 255, 150)]
            return await asyncio.gather(*map(batcher.predict, images), return_exceptions=True)

    first, white, last = asyncio.run(two())
    assert first['sem'].labels.max() == 0 and last['sem'].labels.min() == 1
    assert isinstance(white, RuntimeError)


def test_images_beyond_those_that_may_wait_are_refused():
    painter = Painter()
    painter.hold.clear()

    async def many(**options: bool) -> list[Any]:
        black = torch.zeros(3, 8, 8, dtype=torch.uint8)
        async with Batcher(painter, most_waiting=2) as batcher:
            tasks = [asyncio.create_task(batcher.predict(black, **options)) for _ in range(5)]
            await asyncio.sleep(0.2)
            painter.hold.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    kinds = [type(output) for output in asyncio.run(many())]
    assert kinds.count(Result) == 2 and kinds.count(QueueFullError) == 3
    painter.hold.clear()
    kinds = [type(output) for output in asyncio.run(many(wait=True))]  # frames of videos that have begun
    assert kinds == [Result] * 5
    with serving(waiting=0) as (client, _):
        output = client.post('/api/image', content=png())
    assert output.status_code == 429 and output.headers['retry-after'] == '1'


def test_pages_of_other_sites_and_other_hosts_are_refused():
    with serving() as (client, painter):
        foreign = client.post('/api/image', content=png(), headers={'Origin': 'https://example.org'})
        rebound = client.post('/api/image', content=png(), headers={'Host': 'example.org'})
        own = client.post('/api/image', content=png(), headers={'Origin': 'http://testserver'})
    assert (foreign.status_code, rebound.status_code, own.status_code) == (403, 400, 200)
    assert painter.batches == [1]


def test_the_response_to_a_video_comes_frame_by_frame_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'own'))
    (tmp_path / 'own').mkdir()
    writer = cv2.VideoWriter(str(tmp_path / 'a.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (32, 24))
    for number in range(8):
        writer.write(np.full((24, 32, 3), 20 * number, np.uint8))
    writer.release()
    content = (tmp_path / 'a.avi').read_bytes()
    with serving(frames=3) as (client, _):
        lines = client.post('/api/video?every=2', content=content).text.splitlines()
        broken = client.post('/api/video', content=b'no video')
    records = [json.loads(line) for line in lines]
    assert [record['seconds'] for record in records] == pytest.approx([0, 0.2, 0.4]) and records[0]['size'] == [24, 32]
    assert broken.status_code == 422
    assert list((tmp_path / 'own').iterdir()) == []


def test_runs_of_masks_begin_outside():
    mask = np.array([[True, True, False], [False, True, True]])
    assert runs(mask) == [0, 2, 2, 2]
    assert runs(~mask) == [2, 2, 2] and runs(np.zeros((2, 3), bool)) == [6]


def test_a_real_predictor_has_the_results_that_it_has_alone():
    predictor = Predictor(tiny_model(), device='cpu', amp='off')
    content = io.BytesIO()
    Image.fromarray(image()).save(content, format='PNG')
    with TestClient(app.create_app(predictor, name='tiny', hosts=['testserver'])) as client:
        record = client.post('/api/image', content=content.getvalue()).json()
    with Image.open(io.BytesIO(base64.b64decode(record['semantic']['sem']))) as labels:
        assert np.array_equal(np.asarray(labels), predictor(image())['sem'].labels.numpy())
