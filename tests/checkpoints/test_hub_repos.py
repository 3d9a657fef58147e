"""Model cards, and model folders on the Hub, whose client is replaced by one of the same signatures: no network."""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError

import vitdense
from vitdense.checkpoints.hub_repos import FILES, fetch_repo
from vitdense.checkpoints.model_card import GENERATED
from vitdense.checkpoints.model_folder import save_model_folder, set_operating_points
from vitdense.errors import CheckpointError, ConfigError
from vitdense.export.runtimes import GRAPHS
from vitdense.registry import build

VIT = dict(type='vitdense.backbones.vit.ViT', name='vit_tiny_patch16_224', img_size=32)
VIT |= dict(timm_args=dict(embed_dim=24, depth=2, num_heads=2))
HEAD = dict(type='vitdense.heads.linear.LinearHead', norm='none')
BRANCHES = dict(sem=dict(adapter=dict(type='vitdense.adapters.plain.PlainMaps'), head=HEAD))
RECIPE = dict(
    type='vitdense.model.DenseModel',
    network=dict(type='vitdense.networks.shared.SharedNetwork', backbone=VIT, branches=BRANCHES),
    tasks=dict(sem=dict(type='vitdense.tasks.semantic.SemanticTask')),
)
CLASSES = {'semantic': ['sky', 'grass', 'straße']}
EXTRA = {'metrics': {'sem/mIoU': 0.512, 'sem/iou/sky': 0.9}, 'step': 800, 'data': ['camvid']}


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / 'yard' / 'model'
    state = build(RECIPE, classes=CLASSES).state_dict()
    save_model_folder(path, RECIPE, state, metainfo={'classes': CLASSES}, extra=EXTRA)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Repositories as folders, `OWNER/NAME@REVISION`; calls must fit the signatures of the real client."""
    stored = tmp_path / 'hub'

    def copy(source: Path, target: Path, patterns: list[str]) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns):
                shutil.copyfile(file, target / file.name)

    def upload(self, *, repo_id, folder_path, revision=None, allow_patterns, **_):
        copy(Path(folder_path), stored / f'{repo_id}@{revision or "main"}', allow_patterns)
        return SimpleNamespace(commit_url=f'https://huggingface.co/{repo_id}/commit/1')

    def download(*arguments, **options):
        overrides = signature(snapshot).bind(*arguments, **options).arguments
        source = stored / f'{overrides["repo_id"]}@{overrides.get("revision") or "main"}'
        if not source.is_dir():
            raise RepositoryNotFoundError(
                '404: there is no such repository', response=SimpleNamespace(headers={}, request=None)
            )
        copy(source, tmp_path / 'cache', overrides['allow_patterns'])
        return str(tmp_path / 'cache')

    snapshot, api = huggingface_hub.snapshot_download, create_autospec(HfApi)
    api.return_value.upload_folder.side_effect = lambda **options: upload(None, **options)
    monkeypatch.setattr(huggingface_hub, 'HfApi', api)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    return api.return_value


def test_the_card_says_what_the_hub_and_a_reader_need(folder):
    card = ModelCard.load(folder / 'README.md')
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == ('vitdense', 'image-segmentation', 'other')
    assert data.datasets is None and data.metrics == ['mIoU'] and data.model_name == 'yard'
    (score,) = data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_name) == ('mIoU', 0.512, 'camvid')
    assert '| sem | mIoU | 0.512 |' in card.text and 'sky, grass, straße' in card.text and 'on camvid' in card.text
    code = card.text.partition('```python\n')[2].partition('```')[0]
    assert len(code.strip().splitlines()) == 4  # an import, and three lines with an empty one between
    done = subprocess.run(['sha256sum', '-c', 'SHA256SUMS'], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('OK') == 3


def test_the_card_follows_new_thresholds_unless_it_was_edited(folder):
    points = {'sem': {'threshold': [0.25, None, 0.5], 'precision': [1.0, None, 0.5], 'recall': [0.5, None, 1.0]}}
    set_operating_points(folder, points)
    text = (folder / 'README.md').read_text()
    assert '| sky | 0.250 | 1.000 | 0.500 |' in text and '| grass | - | - | - |' in text
    (folder / 'README.md').write_text(text.replace(GENERATED, 'mine'))
    set_operating_points(folder, {})
    assert (folder / 'README.md').read_text() == text.replace(GENERATED, 'mine')
    assert subprocess.run(['sha256sum', '--status', '-c', 'SHA256SUMS'], cwd=folder).returncode == 0


def test_a_pushed_model_is_loaded_by_its_name(folder, hub, tmp_path):
    (folder / 'code.py').write_text('raise SystemExit')
    address = vitdense.push_to_hub(folder, 'me/yard', licence='apache-2.0', datasets=['me/photos'], private=True)
    assert address == 'https://huggingface.co/me/yard/commit/1'
    hub.create_repo.assert_called_once_with('me/yard', private=True, exist_ok=True)
    image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    here, there = (vitdense.load(name, device='cpu', amp='off')(image) for name in (folder, 'hf:me/yard'))
    assert torch.equal(here['sem'].labels, there['sem'].labels)
    assert not (tmp_path / 'cache' / 'code.py').exists()  # data only
    data = ModelCard.load(tmp_path / 'cache' / 'README.md').data
    assert data.license == 'apache-2.0' and data.datasets == ['me/photos']
    assert "vitdense.load('hf:me/yard')" in (folder / 'README.md').read_text()


def test_the_files_of_every_exported_format_are_uploaded():
    names = [name for names in GRAPHS.values() for name in names]
    assert len(names) >= 4 and all(any(fnmatch.fnmatch(name, pattern) for pattern in FILES) for name in names)


def test_a_revision_is_a_branch_of_its_own(folder, hub):
    vitdense.push_to_hub(folder.parent, 'me/yard@v2')
    hub.create_branch.assert_called_once_with('me/yard', branch='v2', exist_ok=True)
    assert vitdense.load('hf:me/yard@v2', device='cpu').classes == {'sem': CLASSES['semantic']}
    with pytest.raises(CheckpointError, match='hf:me/yard cannot be fetched') as caught:
        vitdense.load('hf:me/yard')
    assert 'there is no such repository' in caught.value.why


@pytest.mark.parametrize('name', ['hf:yard', 'hf:a/b/c', 'hf:../etc/passwd', 'hf:a/b@'])
def test_names_that_are_no_repository(name):
    with pytest.raises(ConfigError, match='names no repository'):
        fetch_repo(name)


@pytest.mark.faults
def test_damaged_weights_are_not_uploaded(folder, hub):
    content = bytearray((folder / 'model.safetensors').read_bytes())
    content[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match='not those that model.json describes'):
        vitdense.push_to_hub(folder, 'me/yard')
    hub.upload_folder.assert_not_called()
    (folder / 'model.json').write_text(json.dumps({'format': 2}))
    with pytest.raises(CheckpointError):
        vitdense.push_to_hub(folder, 'me/yard')
