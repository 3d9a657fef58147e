"""FI-10 and FI-23: configs that do not fit their data, and configs of unknown origin."""

from __future__ import annotations

import ast
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import tools.train as tool
from vitdense.commands.train import train
from vitdense.config.data_config import MAX_VALUES, safe_config
from vitdense.config.load import load_config
from vitdense.config.safe_types import SAFE_TYPES
from vitdense.errors import ConfigError
from vitdense.registry import resolve

pytestmark = pytest.mark.faults
PACKAGE = Path(__file__).resolve().parents[2] / 'vitdense'


@pytest.fixture
def content(config_file):
    """The config of a tiny run as the content of a data-only config."""
    return safe_config(load_config(config_file))


@pytest.fixture
def marker(tmp_path, monkeypatch):
    path = tmp_path / 'marker'
    monkeypatch.setenv('MARKER', str(path))
    return path


def error_of(path: Path) -> ConfigError:
    """Return the error of the tool for a config; the same as that of the function, before anything is built."""
    with pytest.raises(ConfigError) as caught:
        tool.main([str(path), '--safe', '--work-dir', str(path.parent / 'run')])
    assert caught.value.exit_code == 2 and not (path.parent / 'run').exists()
    return caught.value


def test_fi_10_a_wrong_number_of_classes_names_the_classes_and_the_line(config_file, tmp_path):
    text = config_file.read_text().replace('type=LinearHead, ', 'type=LinearHead, num_classes=3, ')
    config_file.write_text(text)
    line = 1 + next(row for row, words in enumerate(text.splitlines()) if 'num_classes' in words)
    with pytest.raises(ConfigError, match='3 classes, but the data has 4') as caught:
        train(load_config(config_file), work_dir=tmp_path / 'run', device='cpu')
    error = caught.value
    assert f'{config_file}:{line}: model.network.branches.sem.head.num_classes' in error.where
    assert 'background, circle, square, triangle' in error.why and error.exit_code == 2


@pytest.mark.parametrize('suffix', ['.json', '.yaml'])
def test_fi_23_a_data_only_config_is_the_config(content, config_file, tmp_path, suffix):
    path = tmp_path / f'tiny{suffix}'
    path.write_text(json.dumps(content) if suffix == '.json' else yaml.safe_dump(content))
    ours, theirs = load_config(path, safe=True), load_config(config_file)
    assert ours.pop('data_root') == str(tmp_path) and theirs.pop('data_root', None) is None

    def lists(value):  # JSON has no tuples
        if isinstance(value, dict):
            return {key: lists(item) for key, item in value.items()}
        return [lists(item) for item in value] if isinstance(value, list | tuple) else value

    assert lists(ours) == lists(theirs)
    assert load_config(path) == load_config(path, safe=True)  # without --safe it is no more than that


EVIL_YAML = '!!python/object/apply:os.mkdir [{marker}]'


@pytest.mark.parametrize('name', ['tag.yaml', 'imports.json', 'dotted.json', 'hook.json', 'code.py'])
def test_fi_23_nothing_of_a_config_is_run(content, tmp_path, marker, monkeypatch, name):
    path = tmp_path / name
    (tmp_path / 'evil.py').write_text("import os\nos.mkdir(os.environ['MARKER'])\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {
        'imports.json': dict(custom_imports=dict(imports=['evil'])),
        'dotted.json': dict(custom_hooks=[dict(type='os.mkdir', path=str(marker))]),
        'hook.json': dict(custom_hooks=[dict(type='evil.Hook')]),
    }
    if name.endswith('.json'):
        path.write_text(json.dumps(content | changes[name]))
    else:
        path.write_text(EVIL_YAML.format(marker=marker) if name == 'tag.yaml' else (tmp_path / 'evil.py').read_text())
    error = error_of(path)
    assert not marker.exists()
    keys = {'imports.json': 'custom_imports', 'dotted.json': 'custom_hooks.0.type', 'hook.json': 'custom_hooks.0.type'}
    assert name in str(error) and keys.get(name, '') in error.where
    assert 'object/apply:os.mkdir' in error.why if name == 'tag.yaml' else True
    if name == 'code.py':
        load_config(path)  # without --safe it is a program, and runs
        assert marker.exists()


BACKBONE, DATA = 'model.network.backbone', 'train_dataloader.dataset'


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        (f'{BACKBONE}.pretrained', True),
        (f'{BACKBONE}.pretrained', '/etc/passwd'),
        (f'{BACKBONE}.pretrained', '../weights.pth'),
        (f'{BACKBONE}.pretrained', 'link/weights.pth'),
        (f'{BACKBONE}.pretrained', 'https://x/y.pth'),
        (f'{BACKBONE}.name', 'hf-hub:someone/model'),
        (f'{BACKBONE}.timm_args.checkpoint_path', 'x.pth'),
        (f'{BACKBONE}.timm_args.pretrained_cfg', {'url': 'x'}),
        (f'{DATA}.root', '~/data'),
        (f'{DATA}.root', 'a\0b'),
        (f'{DATA}.root', 'C:\\data'),
        (f'{DATA}.follow_links', True),
        (f'{DATA}.cache', 'elsewhere'),
        (f'{DATA}.type', 'vitdense.data.shapes.ShapesScenes'),
        (f'{DATA}.type', ['ShapesScenes']),
        (f'{DATA}.type', None),
        ('work_dir', 'run'),
        ('loggers', ['wandb']),
    ],
)
def test_fi_23_a_data_only_config_stays_in_its_folder(content, tmp_path, key, value):
    folder = tmp_path / 'config'
    folder.mkdir()
    (folder / 'link').symlink_to(tmp_path)
    holder = content
    for name in key.split('.')[:-1]:
        holder = holder[name]
    holder[key.split('.')[-1]] = value
    (folder / 'x.json').write_text(json.dumps(content))
    assert key in error_of(folder / 'x.json').where


def test_fi_23_repeated_values_do_not_fill_the_memory(tmp_path):
    lines = [
        'a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]',
        *(f'{y}: &{y} [{", ".join(9 * [f"*{x}"])}]' for x, y in pairwise('abcdefgh')),
    ]
    (tmp_path / 'many.yaml').write_text('\n'.join(lines))
    assert f'{MAX_VALUES} values' in error_of(tmp_path / 'many.yaml').why
    (tmp_path / 'loop.yaml').write_text('a: &a\n  b: *a\n')
    assert 'too large' in error_of(tmp_path / 'loop.yaml').message
    (tmp_path / 'deep.json').write_text('[' * 10**5)
    error_of(tmp_path / 'deep.json')


def test_files_of_a_data_only_config_are_below_it(content, tmp_path):
    content['model']['network']['backbone']['pretrained'] = 'weights/vit.safetensors'
    content['data_root'] = 'data'
    (tmp_path / 'x.json').write_text(json.dumps(content))
    cfg = load_config(tmp_path / 'x.json', safe=True)
    assert cfg.data_root == str(tmp_path / 'data')
    assert cfg.model.network.backbone.pretrained == str(tmp_path / 'weights/vit.safetensors')


def test_every_part_that_shipped_configs_name_is_in_the_table():
    for path in SAFE_TYPES.values():
        assert resolve(path).__name__ == path.rpartition('.')[2]
    named = set()
    for file in (PACKAGE.parent / 'configs').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == 'type' and isinstance(node.value, ast.Name):
                named.add(node.value.id)
    assert named <= SAFE_TYPES.keys() and len(named) > 50
    assert os.sep not in ''.join(SAFE_TYPES)
