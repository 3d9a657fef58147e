"""Sections of a config share nothing; a test section that is absent is that of validation."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vitdense.config.dump import dump_config
from vitdense.config.load import load_config
from vitdense.config.run_config import RunConfig
from vitdense.errors import ConfigError

VAL = """
val_dataloader = dict(batch_size=2, dataset=dict(
    type='vitdense.data.coco.dataset.CocoDetection', annotations='val.json', images='val', evaluation=True,
    transforms=[dict(type='vitdense.data.transforms.common.ResizeTo', size=256)]))
val_evaluator = [dict(type='vitdense.metrics.average_precision.CocoAP', head='det')]
"""
TRAIN = VAL.partition('val_eval')[0].replace('val', 'train').replace(' etrainuation=True,', '')
INHERIT = 'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'


def load(tmp_path: Path, text: str, *options: str, base: str | None = None) -> RunConfig:
    if base is not None:
        (tmp_path / 'base.py').write_text(base)
        text = INHERIT + text
    (tmp_path / 'mine.py').write_text(text)
    return load_config(tmp_path / 'mine.py', options)


def files(cfg: RunConfig) -> tuple[str, str]:
    return cfg.val_dataloader.dataset.annotations, cfg.test_dataloader.dataset.annotations


def containers(value: Any) -> list[Any]:
    """Return every dict and list within `value`."""
    if not isinstance(value, dict | list | tuple):
        return []
    items = value.values() if isinstance(value, dict) else value
    return [*([] if isinstance(value, tuple) else [value]), *(actual for item in items for actual in containers(item))]


def assert_no_shared_objects(cfg: RunConfig) -> None:
    actual = containers(cfg)
    assert len({id(value) for value in actual}) == len(actual)


@pytest.mark.parametrize('base', [None, VAL, VAL + 'test_dataloader = val_dataloader\n'])
@pytest.mark.parametrize(
    'change',
    [
        'test_dataloader = val_dataloader\ntest_dataloader.dataset.update(annotations="test.json")\n',
        'test_dataloader = val_dataloader\ntest_dataloader.dataset.annotations = "test.json"\n',
        'test_dataloader = val_dataloader.copy()\ntest_dataloader.dataset.update(annotations="test.json")\n',
        'test_dataloader = dict(val_dataloader)\ntest_dataloader["dataset"].update(annotations="test.json")\n',
        'test_dataloader = dict(**val_dataloader)\ntest_dataloader["dataset"]["annotations"] = "test.json"\n',
        'test_dataloader = dict(dataset=val_dataloader.dataset)\n'
        'test_dataloader["dataset"].update(annotations="test.json")\n',
        'val_dataloader = test_dataloader = val_dataloader\ntest_dataloader.dataset.annotations = "test.json"\n',
        'test_dataloader = val_dataloader\n'
        'for one in (test_dataloader,):\n    one.dataset.annotations = "test.json"\ndel one\n',
        'test_dataloader.dataset.update(annotations="test.json")\n',
        'test_dataloader.dataset.annotations = "test.json"\n',
        'test_dataloader["dataset"]["annotations"] = "test.json"\n',
    ],
)
def test_a_change_of_the_test_split_leaves_validation_alone(base, change, tmp_path):
    text = (
        change
        if base
        else VAL + change.replace('.dataset', '["dataset"]').replace('.annotations =', '["annotations"] =')
    )
    cfg = load(tmp_path, text, base=base)
    assert files(cfg) == ('val.json', 'test.json')
    assert cfg.val_dataloader.dataset.transforms == cfg.test_dataloader.dataset.transforms
    assert_no_shared_objects(cfg)


@pytest.mark.parametrize(
    'change',
    [
        '',
        'val_dataloader.dataset.update(annotations="new.json")\n',
        'test_dataloader = val_dataloader\n',
        'test_dataloader = val_dataloader\nval_dataloader.dataset.update(annotations="new.json")\n',
        'val_dataloader.dataset.update(annotations="new.json")\ntest_dataloader = val_dataloader\n',
        'for loader in (val_dataloader, test_dataloader):\n    loader.batch_size = 7\ndel loader\n',
    ],
)
@pytest.mark.parametrize('base', [VAL, VAL + 'test_dataloader = val_dataloader\ntest_evaluator = val_evaluator\n'])
def test_an_absent_or_equal_test_section_is_that_of_validation(base, change, tmp_path):
    cfg = load(tmp_path, change, base=base)
    assert cfg.test_dataloader == cfg.val_dataloader and cfg.test_evaluator == cfg.val_evaluator
    assert cfg.val_dataloader.dataset.annotations == ('new.json' if 'new' in change else 'val.json')
    assert cfg.val_dataloader.batch_size == (7 if '7' in change else 2)
    assert_no_shared_objects(cfg)
    dump_config(cfg, tmp_path / 'dumped.py')
    assert load_config(tmp_path / 'dumped.py') == cfg


def test_a_base_imported_by_name_gives_its_test_section(tmp_path):
    (tmp_path / 'base.py').write_text(VAL)
    names = INHERIT.replace('*', 'val_dataloader, val_evaluator, test_dataloader, test_evaluator')
    (tmp_path / 'mine.py').write_text(names + 'val_dataloader.batch_size = 5\n')
    cfg = load_config(tmp_path / 'mine.py')
    assert cfg.test_dataloader.dataset.annotations == 'val.json'


def test_options_of_validation_reach_the_test_and_those_of_the_test_win(tmp_path):
    options = [
        'test_dataloader.dataset.images=test',
        'val_dataloader.dataset.annotations=new.json',
        'val_evaluator.0.head=x',
    ]
    for text in ('', 'test_dataloader = val_dataloader\n'):
        cfg = load(tmp_path, text, *options, base=VAL)
        assert files(cfg) == ('new.json', 'new.json')
        assert (cfg.val_dataloader.dataset.images, cfg.test_dataloader.dataset.images) == ('val', 'test')
        assert cfg.test_evaluator[0].head == 'x'
        dump_config(cfg, tmp_path / 'dumped.py')
        again = load_config(tmp_path / 'dumped.py', ['val_dataloader.dataset.annotations=third.json'])
        assert files(again) == ('third.json', 'new.json')  # the test is another split: it follows no longer


def test_what_training_and_validation_share_is_copied(tmp_path):
    text = (
        'shared = [dict(type="vitdense.data.transforms.common.ResizeTo", size=64)]\n'
        'train_dataloader.dataset.transforms = shared\nval_dataloader.dataset.transforms = shared\ndel shared\n'
        'val_dataloader.dataset.transforms[0].update(size=96)\n'
    )
    cfg = load(tmp_path, text, base=TRAIN + VAL)
    sizes = [cfg[key].dataset.transforms[0].size for key in ('train_dataloader', 'val_dataloader', 'test_dataloader')]
    assert sizes == [64, 96, 96]
    assert_no_shared_objects(cfg)


def test_a_helper_in_a_loop_still_changes_the_sections(tmp_path):
    text = (
        'for loader in (train_dataloader, val_dataloader):\n    loader.batch_size = 9\ndel loader\n'
        'data = val_dataloader.dataset\ndata.images = "photos"\ndel data\n'
    )
    cfg = load(tmp_path, text, base=TRAIN + VAL)
    assert cfg.train_dataloader.batch_size == cfg.test_dataloader.batch_size == 9
    assert cfg.test_dataloader.dataset.images == 'photos'


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('test_dataloader = val_dataloader\ntest_dataloader.batch_size = 1\nval_dataloader.dataset.images = "x"\n', 4),
        ('test_dataloader.batch_size = 1\nval_dataloader.dataset.images = "x"\n', 4),
        (
            'steps = [dict(a=64)]\ntrain_dataloader = dict(dataset=dict(transforms=steps))\n'
            'val_dataloader = dict(dataset=dict(transforms=steps))\nsteps[0]["a"] = 96\n',
            6,
        ),
    ],
)
def test_a_change_that_comes_too_late_is_refused(text, line, tmp_path):
    with pytest.raises(ConfigError, match='is changed after') as caught:
        load(tmp_path, text, base=TRAIN + VAL)
    assert caught.value.where.endswith(f'mine.py:{line}')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('with read_base():\n    from .nothing import *\n', "no config '.nothing' to start from"),
        ('with read_base():\n    from .bose import *\n', "did you mean '.base'"),
        (
            'with read_base():\n    from vitdense.configs.quickstart.shape import *\n',
            'vitdense.configs.quickstart.shapes',
        ),
        ('with read_base():\n    from base import *\n', "no config 'base' to start from"),
        ('with read_base():\n    from .base import val_dataloaders\n', "did you mean 'val_dataloader'"),
        ('with read_base():\n    from .mine import *\n', 'inherits from itself'),
    ],
)
def test_a_base_that_is_not_there_is_named(text, message, tmp_path):
    (tmp_path / 'base.py').write_text(VAL)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


def test_an_error_in_a_base_names_its_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, '', base='seed = 0\nseed = 1 / 0\n')
    assert caught.value.where.endswith('base.py:2')


def test_a_config_anywhere_starts_from_one_that_vitdense_brings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        'import math\nfrom mmengine.config import read_base\n'
        'with read_base():\n    from vitdense.configs._base_.runtime import *\n'
        'with read_base():\n    from vitdense.configs.quickstart.shapes_segmentation import *\n'
        'val_dataloader.dataset.update(num_images=math.floor(7.5))\n'
    )
    cfg = load(tmp_path, text)
    assert cfg.test_dataloader.dataset.num_images == 7 and cfg.test_evaluator[0].type.endswith('MeanIoU')
    assert 'math' not in cfg


def test_the_configs_of_the_docs_load_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).resolve().parents[2] / 'docs/your_own_data.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    configs = [block for block in blocks if 'read_base' in block]
    split = next(block for block in blocks if 'test_dataloader.dataset.update(' in block)
    assert len(configs) >= 2
    for config in configs:
        assert load(tmp_path, config).test_dataloader.dataset.transforms
    cfg = load(tmp_path, configs[0] + split)
    images = [cfg[key].dataset.images for key in ('train_dataloader', 'val_dataloader', 'test_dataloader')]
    assert images == ['images/train', 'images/val', 'images/test']
    options = re.findall(r'--cfg-options (test_dataloader\S+) (\S+)', text)[0]
    assert load(tmp_path, configs[0], *options).test_dataloader == cfg.test_dataloader


def test_threads_may_load_configs_at_once(tmp_path):
    path = Path(__file__).resolve().parents[2] / 'configs/semantic/linear_vit_ti_camvid.py'
    first = load_config(path)
    with ThreadPoolExecutor(4) as pool:
        assert all(cfg == first for cfg in pool.map(load_config, [path] * 12))
