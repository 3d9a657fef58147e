"""Published models by name: fetched from a local server, converted once, used by load and by the tools."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import torch

import vitdense
from tests.convert.test_import_weights import dinov2, linear_head, sampled
from tools.export import main as export
from tools.models import main as list_tool
from vitdense.commands import models
from vitdense.commands.models import trained_model
from vitdense.convert import model_names, published_models
from vitdense.convert.fetch import RECORD, fetch
from vitdense.convert.model_names import model_path
from vitdense.convert.published_models import PublishedModel, RemoteFile
from vitdense.errors import CheckpointError, ConfigError
from vitdense.storage.weights import save_weights

CONFIG = """
from mmengine.config import read_base

with read_base():
    from vitdense.configs.semantic.linear_dinov2_s_ade20k import *

model.network.backbone.update(timm_args=dict(embed_dim=48, depth=2, num_heads=3))
data_root = 'nowhere'
"""
COMMIT = '1' * 40


class Publisher(ThreadingHTTPServer):
    """Serves the files of a folder, as a plain server and as the Hub does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.folder, self.url, self.fetched = folder, f'http://127.0.0.1:{self.server_port}', []


class Handler(BaseHTTPRequestHandler):
    def _head(self) -> bytes | None:
        if self.path.startswith('/gated/'):
            self.send_response(403)
            self.send_header('X-Error-Code', 'GatedRepo')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        file = self.server.folder / self.path.rpartition('/')[2]
        if not file.is_file():
            return self.send_error(404)
        content = file.read_bytes()
        digits = hashlib.sha256(content).hexdigest()
        self.send_response(200)
        for name, value in (('ETag', f'"{digits}"'), ('X-Repo-Commit', COMMIT), ('Content-Length', len(content))):
            self.send_header(name, str(value))
        self.end_headers()
        return content

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        self.server.fetched.append(self.path)
        content = self._head()
        if content is not None:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    (tmp_path / 'public').mkdir()
    server = Publisher(tmp_path / 'public')
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    monkeypatch.setenv('VITDENSE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(hub, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(hub, 'ENDPOINT', server.url)
    template = server.url + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(hub, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(hub, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    """A small published model, a backbone and a head, whose publisher is `server`."""
    save_weights(server.folder / 'backbone.safetensors', sampled(dinov2(48, 2)))
    save_weights(server.folder / 'head.safetensors', sampled(linear_head(48)))
    (tmp_path / 'small.py').write_text(CONFIG)
    files = [RemoteFile(url=f'{server.url}/{name}.safetensors') for name in ('backbone', 'head')]
    rest = dict(classes=150, parameters=80_000, config=str(tmp_path / 'small.py'), result='1 mIoU', source='a page')
    model = PublishedModel('small-dinov2-ade20k', 'dinov2-linear', 'semantic', 'ADE20K', files=files, **rest)
    table = published_models.published_models() | {model.name: model}
    for module in (published_models, model_names, models):
        monkeypatch.setattr(module, 'published_models', lambda: table)
    return model


def test_a_name_is_fetched_and_converted_once(model, server, capsys):
    assert model_names.status(model) == ''
    path = trained_model('Small_DINOv2-ade20k')
    assert server.fetched == ['/backbone.safetensors', '/head.safetensors']
    out = capsys.readouterr().out
    assert 'github.com/facebookresearch/dinov2' in out and 'licence: Apache-2.0' in out
    assert model_names.status(model) == 'ready'
    server.shutdown()
    predictor = vitdense.load(model.name, device='cpu', amp='off')
    assert predictor(torch.zeros(3, 60, 80, dtype=torch.uint8))['sem'].labels.shape == (60, 80)
    assert predictor.metainfo['classes']['semantic'][0] == 'wall'
    info = json.loads((Path(path) / 'model.json').read_text())
    assert [file['name'] for file in info['published']['files']] == ['backbone.safetensors', 'head.safetensors']
    assert len(server.fetched) == 2


def test_a_copy_put_there_by_hand_is_taken_and_a_changed_one_is_refused(model, server, tmp_path):
    folder = model_names.download_folder(model)
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="could not fetch 'backbone.safetensors'") as caught:
        model_path(model.name)
    assert str(folder / 'backbone.safetensors') in caught.value.fix
    assert caught.value.fix.endswith(f'also needed there: {model.files[1].url}')
    for file in server.folder.iterdir():
        file.rename(folder / file.name)
    assert model_names.status(model) == 'fetched'
    converted = model_path(model.name)
    recorded = json.loads((folder / RECORD).read_text())
    assert recorded['head.safetensors']['url'] == model.files[1].url
    (converted / 'model.json').unlink()
    save_weights(folder / 'head.safetensors', sampled(linear_head(48)))
    with pytest.raises(CheckpointError, match='not the file that was expected') as caught:
        model_path(model.name)
    assert RECORD in caught.value.where


def test_what_exists_wins_over_a_name_and_a_misspelt_name_is_an_error(model, server, tmp_path):
    (tmp_path / model.name).mkdir()
    assert model_path(model.name) == Path(model.name) and server.fetched == []
    with pytest.raises(ConfigError, match="did you mean 'rf-detr-nano'"):
        model_path('rfdetr-nano')
    for path in ('rfdetr-nano.pth', 'models/rf-detr-nana', 'nothing', 'best.pth:model'):
        assert model_path(path) == Path(path)
    with pytest.raises(ConfigError, match="did you mean 'eomt-l-ade20k'"):
        export(['eomt-ade20k', '--format', 'torch-export', '--out', str(tmp_path / 'out')])


def test_a_licence_with_conditions_must_be_accepted_before_anything_is_fetched(server):
    with pytest.raises(ConfigError, match='CC-BY-NC-4.0') as caught:
        vitdense.load('mae-upernet-b-ade20k', device='cpu')
    assert '--accept-licence' in caught.value.fix and 'accept_licence=True' in caught.value.fix
    assert server.fetched == []


def test_files_of_the_hub_are_checked_against_its_hash(server, tmp_path):
    (server.folder / 'weights.bin').write_bytes(b'0' * 1000)
    file = RemoteFile(repo='owner/name', path='folder/weights.bin')
    path = fetch(file, tmp_path / 'downloads')
    assert path.read_bytes() == b'0' * 1000 and server.fetched[-1] == '/owner/name/resolve/main/folder/weights.bin'
    server.shutdown()
    assert fetch(file, tmp_path / 'downloads') == path  # from its cache
    assert not (tmp_path / 'downloads' / RECORD).exists()  # the Hub states the hash
    path.resolve().write_bytes(b'1' * 1000)
    with pytest.raises(CheckpointError, match='not the file that was expected'):
        fetch(file, tmp_path / 'downloads')


def test_terms_of_a_repository_that_were_not_accepted_are_an_error_with_its_page(server, tmp_path):
    with pytest.raises(CheckpointError, match='open only to users who accepted its terms') as caught:
        fetch(RemoteFile(repo='gated/name', path='model.safetensors'), tmp_path)
    assert caught.value.where == 'https://huggingface.co/gated/name'
    assert 'hf auth login' in caught.value.fix and caught.value.fix.endswith(str(tmp_path / 'model.safetensors'))


def test_without_the_hub_the_place_for_a_copy_is_named(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="could not fetch 'weights.bin'") as caught:
        fetch(RemoteFile(repo='owner/name', path='weights.bin'), tmp_path)
    assert caught.value.fix.endswith(str(tmp_path / 'weights.bin'))


def test_the_list_has_names_licences_and_what_is_here(model, server, capsys):
    list_tool(['eomt', '--json'])
    rows = json.loads(capsys.readouterr().out)
    assert {'eomt-l-ade20k', 'eomt-dinov3-l-coco-640'} <= {row['name'] for row in rows}
    deltas = next(row for row in rows if row['name'] == 'eomt-dinov3-l-ade20k')
    assert not deltas['free'] and len(deltas['files']) == 2 and deltas['result'] == '59.5 mIoU'
    list_tool(['small'])
    out = capsys.readouterr().out
    assert 'small-dinov2-ade20k' in out and '150 (ADE20K)' in out and 'lw-detr-small' in out
    with pytest.raises(ConfigError, match="no published model has 'yolo'"):
        list_tool(['yolo'])
