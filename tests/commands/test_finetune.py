"""`vitdense finetune`: from a folder to a tested model, whose config trains the same again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitdense
import vitdense.commands.finetune as finetuning
from tests.data.formats.test_labelled_folder import masks, roboflow_coco
from vitdense.commands.parser import duration
from vitdense.commands.presets import (
    PRESETS,
    Cost,
    choose_preset,
    default_steps,
    length_options,
    query_options,
    steps_in,
    task_of,
    useful_steps,
)
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.data.classification import ClassificationDataset
from vitdense.data.files.splits import part_of
from vitdense.data.formats.labelled_folder import read_folder
from vitdense.errors import ConfigError

TINY = [
    'model.network.backbone.pretrained=False',
    "+model.network.backbone.timm_args={'embed_dim': 24, 'num_heads': 2, 'depth': 2}",
    '+model.network.backbone.img_size=32',
    'train_dataloader.dataset.transforms.crop.size=32',
    'val_dataloader.dataset.transforms.crop.size=32',
    'train_dataloader.batch_size=4',
    '+sample_images=0',
]


def class_folders(root: Path, **counts: int) -> Path:
    """Write bright and dark images of 40 x 40 in class folders of the splits `counts`; return `root`."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            folder = root / split / ('bright' if number % 2 else 'dark')
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 100, (40, 40, 3)) + 150 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    return root


def test_a_folder_becomes_a_tested_model_whose_config_trains_the_same_again(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(finetuning, 'TIMED_SECONDS', 0)
    folder = class_folders(tmp_path / 'lamps', train=20, test=6)
    options = [*TINY, 'schedule.max_iters=6', 'schedule.val_interval=3', 'schedule.warmup_iters=1']
    model = vitdense.finetune(folder, time=0.01, work_dir=tmp_path / 'work', device='cpu', options=options)
    printed = capsys.readouterr().out
    assert 'class folders: 2 classes (bright, dark), 17 / 3 / 6 images (train / val / test)' in printed
    assert 'no split for validation: 15 %' in printed and '--time is too short' in printed
    assert f'train {tmp_path / "work" / "config.py"}' in printed
    assert 0 <= json.loads((tmp_path / 'work' / 'test' / 'metrics.json').read_text())['cls/top1'] <= 1
    points = json.loads((model / 'model.json').read_text())['operating_points']['cls']
    assert len(points['threshold']) == 2 and len(points['ece']) == 2 and points['temperature'] > 0
    card = (model / 'README.md').read_text()
    assert '| cls | top1 | ' in card and '| bright | ' in card and 'on lamps, after' in card
    assert vitdense.load(model)(Image.new('RGB', (40, 40)))['cls'].scores.shape == (2,)

    again = train(load_config(tmp_path / 'work' / 'config.py'), work_dir=tmp_path / 'again', device='cpu')
    first, second = (vitdense.load(path).model.state_dict() for path in (model, again.folder / 'model'))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_parts_of_a_split_have_no_image_in_common(tmp_path: Path):
    first, second = part_of(20, (0.0, 0.15), 'part'), part_of(20, (0.15, 1.0), 'part')
    assert len(first) == 3 and sorted([*first, *second]) == list(range(20))
    assert part_of(5, None, 'part').tolist() == [0, 1, 2, 3, 4]
    for wrong in ((0.5, 0.4), (0.0, 1.5), (0.0, 0.01)):
        with pytest.raises(ConfigError):
            part_of(20, wrong, 'part')
    classes = np.repeat([0, 1, 2], [40, 20, 3])
    held, rest = part_of(63, (0.0, 0.2), 'part', groups=classes), part_of(63, (0.2, 1.0), 'part', groups=classes)
    assert np.bincount(classes[held]).tolist() == [8, 4, 1], 'a fifth of every class'
    assert sorted([*held, *rest]) == list(range(63))
    assert part_of(20, (0.0, 0.5), 'part', groups=np.zeros(20)).tolist() == part_of(20, (0.0, 0.5), 'part').tolist()
    root = class_folders(tmp_path, train=10)
    datasets = [ClassificationDataset('train', root=root, part=part) for part in ((0, 0.3), (0.3, 1))]
    files = [{dataset[index].meta.image_id for index in range(len(dataset))} for dataset in datasets]
    assert [len(each) for each in files] == [3, 7] and not files[0] & files[1]


def test_labels_and_hardware_choose_the_preset(tmp_path: Path):
    roboflow_coco(tmp_path / 'boxes')
    masks(tmp_path / 'masks')
    boxes, maps = read_folder(tmp_path / 'boxes'), read_folder(tmp_path / 'masks')
    assert task_of(boxes, None) == 'det' and task_of(boxes, 'inst') == 'inst' and task_of(maps, None) == 'sem'
    with pytest.raises(ConfigError, match="not for the task 'det'"):
        task_of(maps, 'det')
    assert choose_preset('sem', torch.device('cpu')).config == 'configs/presets/semantic_cpu.py'
    assert len({(each.task, each.gpu) for each in PRESETS}) == len(PRESETS) == 8


@pytest.mark.parametrize(('time', 'seconds'), [('90s', 90), ('30m', 1800), ('1.5h', 5400), (20, 20)])
def test_times_have_a_unit(time, seconds):
    assert duration(time) == seconds
    for wrong in ('30', 'soon', '0m', '-3m'):
        with pytest.raises(ConfigError, match='is no time'):
            duration(wrong)


def test_the_tool_names_wrong_arguments_before_it_imports_what_trains(tmp_path: Path):
    (tmp_path / 'yard').mkdir()
    for words, message in (
        ([str(tmp_path / 'yard'), '--time', '5minutes'], 'is no time'),
        ([str(tmp_path / 'yards')], "did you mean 'yard'"),
        ([str(tmp_path / 'yard')], 'no labelled images in'),
    ):
        code = f"""import sys
from vitdense.errors import VitDenseError
from vitdense.tools import finetune
try:
    finetune.main({words!r})
except VitDenseError as error:
    assert 'vitdense.train.build' not in sys.modules
    print(error)
"""
        actual = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert message in actual.stdout


def test_steps_fill_the_time_that_validations_leave():
    cost = Cost(step=0.5, validation=10, test=20)
    steps = steps_in(600, cost)
    assert steps == (600 - 3 * 10 - 20) / 0.5 and cost.total(steps) == 600
    assert useful_steps(steps, images=100, batch_size=4, most_epochs=1000) == steps
    assert useful_steps(steps, images=100, batch_size=4, most_epochs=10) == 250, 'few images: many passes over them'
    assert useful_steps(steps_in(1, cost), images=100, batch_size=4, most_epochs=10) == 50


def test_many_classes_make_the_run_longer():
    cfg = load_config('configs/presets/detection_cpu.py')
    assert default_steps(cfg, images=300, classes=3) == cfg.schedule.max_iters
    assert default_steps(cfg, images=300, classes=80) == 4000, '200 images for each class, 4 in a batch'


def test_a_longer_run_keeps_its_shape():
    cfg = load_config('configs/presets/instances_cpu.py')
    options = length_options(cfg, 650, images=100)  # half of its steps, 52 epochs
    assert 'schedule.max_iters=650' in options and 'schedule.warmup_iters=25' in options
    assert 'train_dataloader.dataset.transforms.paste.epochs=41' in options
    cfg = load_config('configs/presets/detection_cpu.py')
    options = length_options(cfg, 2 * cfg.schedule.max_iters, images=100)
    assert f'ema.momentum={cfg.ema.momentum / 2:.3g}' in options and 'custom_hooks.0.steps=(100,)' in options
    assert f'schedule.warmup_iters={cfg.schedule.warmup_iters}' in options
    assert load_config('configs/presets/detection_cpu.py', options).schedule.max_iters == 2 * cfg.schedule.max_iters
    epochs = load_config('configs/detection/lw_detr_tiny_coco.py')  # a schedule of 60 epochs, 25 of which are 60 steps
    options = length_options(epochs, 600, images=epochs.train_dataloader.batch_size * 10)
    assert load_config('configs/detection/lw_detr_tiny_coco.py', options).schedule.max_epochs is None
    assert query_options(cfg, 30) == []
    more = load_config('configs/presets/detection_cpu.py', query_options(cfg, 150))
    assert more.model.network.branches.det.head.num_queries == 250 and more.model.tasks.det.top_k == 250
