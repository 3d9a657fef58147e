"""The commands that a run prints at its end work as they are printed: on data of one's own, in folders with spaces."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATASET = 'train_dataloader.dataset', 'val_dataloader.dataset'
TINY = (
    'model.network.backbone.name=vit_tiny_patch16_224',
    'model.network.backbone.pretrained=False',
    "+model.network.backbone.timm_args=dict(embed_dim=24,num_heads=2)",
    'model.network.branches.det.adapter.channels=32',
    'model.network.branches.det.head.channels=32',
    'model.network.branches.det.head.ffn_dim=32',
    'model.network.branches.det.head.num_queries=10',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'train_dataloader.dataset.transforms.resize.sizes=(64,)',
    'val_dataloader.dataset.transforms.resize.size=64',
    'schedule.max_iters=1',
    'schedule.val_interval=1',
    'schedule.warmup_iters=0',
    'custom_hooks=[]',
    'amp=off',
)  # fmt: skip


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """Two images, and a COCO file of each for training and validation, in a folder with a space."""
    project = tmp_path / 'my yard'
    (project / 'photos').mkdir(parents=True)
    for number, name in enumerate(('train', 'val')):
        pixels = np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(project / 'photos' / f'{name}.png')
        content = {
            'images': [{'id': 1, 'file_name': f'{name}.png', 'height': 60, 'width': 80}],
            'categories': [{'id': 4, 'name': 'valve [/open]'}, {'id': 6, 'name': '[red]'}],
            'annotations': [
                {'id': row, 'image_id': 1, 'category_id': 2 + 2 * row, 'bbox': [8 * row, 9, 30, 20], 'area': 600}
                for row in (1, 2)
            ],
        }
        (project / f'{name}.json').write_text(json.dumps(content))
    return project


def commands(log: Path) -> list[list[str]]:
    """Return the words of the commands behind 'next:' in the log of a run."""
    lines = log.read_text().partition('next:\n')[2].splitlines()
    return [shlex.split(line.partition('INFO')[2]) for line in lines if 'INFO' in line]


def call(words: list[str]) -> None:
    """Run the tool that a printed command names, in this process."""
    commands = ('vitdense', 'vitdense.tools.cli')
    row = next(row for row, word in enumerate(words) if word in commands or word.endswith('.py'))
    name, rest = (
        (words[row + 1], words[row + 2 :]) if words[row] in commands else (Path(words[row]).stem, words[row + 1 :])
    )
    importlib.import_module(f'vitdense.tools.{name.replace("-", "_")}').main(rest)


def test_the_commands_behind_a_run_on_own_data(yard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'my runs' / 'yard'
    options = [f'{DATASET[0]}.annotations=train.json', f'{DATASET[1]}.annotations=val.json']
    options += [f'{key}.images=photos' for key in DATASET]
    config_name = 'configs/detection/finetune_small.py'
    words = [
        config_name,
        '--work-dir',
        str(folder),
        '--device',
        'cpu',
        '--cfg-options',
        f'data_root={yard}',
        *options,
        *TINY,
    ]
    importlib.import_module('vitdense.tools.train').main(words)
    log = (folder / 'log.txt').read_text()
    assert 'training, my yard: 1 images' in log and 'validation, my yard: 1 images' in log
    assert 'coco_mini480' not in (folder / 'config.py').read_text()
    assert 'valve [/open]' in log and '[red]' in log
    test, demo = commands(folder / 'log.txt')
    call(test)
    scores = json.loads((folder / 'test' / 'metrics.json').read_text())
    assert 'det/AP' in scores and 'test, my yard: 1 images' in (folder / 'test' / 'log.txt').read_text()
    call([*test[: test.index(str(folder / 'config.py'))], str(folder)])  # the folder of the run stands for both
    call(demo)
    assert (folder / 'demo' / 'results.json').is_file()
