"""A config is read strictly: what is misspelt is refused, and what is read can be written and read again."""

from __future__ import annotations

import pytest

from vitdense.config.dump import config_text, dump_config
from vitdense.config.load import find_config, load_config
from vitdense.config.overrides import apply_options, parse_value
from vitdense.errors import ConfigError


def error_of(config_file, text: str, options=()) -> ConfigError:
    config_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, options)
    assert caught.value.fix and str(config_file) in caught.value.where + ' '.join(options)
    return caught.value


def test_dump_and_reload_are_equal(config_file, tmp_path):
    cfg = load_config(config_file)
    dump_config(cfg, tmp_path / 'dumped.py')
    again = load_config(tmp_path / 'dumped.py')
    assert cfg == again
    assert cfg.model.network.branches.sem.head.type == 'vitdense.heads.linear.LinearHead'
    assert config_text({'a': (1,), 'b': {'x y': [1, 'two']}, 'c': dict(d=None)}) == (
        "a = (1,)\nb = {'x y': [1, 'two']}\nc = dict(d=None)\n"
    )


def test_defaults_are_filled_in_and_can_be_named(config_file):
    cfg = load_config(config_file, ['schedule.decay=cosine', 'schedule.milestones=(3, 5)'])
    assert cfg.schedule.decay == 'cosine' and cfg.schedule.milestones == (3, 5)
    assert cfg.schedule.warmup_ratio == 1e-6 and cfg.optim_wrapper.accumulative_counts == 1
    assert 'data_root' not in cfg


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('modle = dict()', "unknown key 'modle'; did you mean 'model'"),
        ('schedule = dict(max_iter=3)', "unknown key 'schedule.max_iter'; did you mean 'max_iters'"),
        ("amp = 'bf61'", "did you mean 'bf16'"),
        ("checkpoint = dict(rule='more')", 'checkpoint.rule'),
        ('train_dataloader = dict(batchsize=3)', "did you mean 'batch_size'"),
        ('from torch.optim import AdmW\noptim_wrapper = dict(optimizer=dict(type=AdmW))', "did you mean 'AdamW'"),
        ("model = dict(type='vitdense.modle.DenseModel')", "cannot import 'vitdense.modle'"),
        ('from torch import nn\nmodel = dict(act=nn.GELU)', 'model.act is'),
        ("seed = float('inf')", 'seed is inf'),
        ('schedule = 3', 'schedule is 3'),
        ('seed = (', 'cannot read'),
        ('seed = 1 / 0', 'cannot read'),
        ('from torch import zeros\nseed = zeros(3)', 'cannot read'),
    ],
)
def test_what_is_wrong_is_refused(config_file, text, message):
    assert message in str(error_of(config_file, text))


def test_the_line_is_named(config_file):
    assert f'{config_file}:3' in error_of(config_file, 'seed = 0\n\nseed = 1 / 0\n').where


def test_standard_library_imports_leave_nothing_behind(config_file):
    config_file.write_text('import math\nfrom os.path import join\nseed = int(math.pi)\nwork_dir = join("a", "b")\n')
    cfg = load_config(config_file)
    assert (cfg.seed, cfg.work_dir) == (3, 'a/b') and 'math' not in cfg


def test_a_base_is_inherited(tmp_path):
    (tmp_path / 'base.py').write_text('schedule = dict(max_iters=3, decay="poly")\nseed = 1\n')
    (tmp_path / 'child.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'
        'schedule.update(decay="cosine")\nseed = 2\n'
    )
    cfg = load_config(tmp_path / 'child.py')
    assert cfg.schedule.max_iters == 3 and cfg.schedule.decay == 'cosine' and cfg.seed == 2


def test_no_such_file_names_the_nearest(tmp_path):
    (tmp_path / 'roads.py').write_text('seed = 1\n')
    with pytest.raises(ConfigError, match="no config .*did you mean '.*roads.py'"):
        find_config(tmp_path / 'rods.py')


@pytest.mark.parametrize(
    'option',
    [
        'seed=-1',
        'seed=x',
        'train_dataloader.num_workers=-1',
        'val_dataloader.batch_size=0',
        'train_dataloader.batch_size=2.5',
    ],
)
def test_counts_are_whole_numbers_within_limits(option, config_file):
    with pytest.raises(ConfigError, match=option.split('=')[0]):
        load_config(config_file, [option])


def content() -> dict:
    return {
        'seed': 0,
        'model': {
            'type': 'vitdense.heads.linear.LinearHead',
            'norm': 'batch',
            'layers': (1, 2),
            'vit': {'timm_args': {'depth': 3}},
        },
        'parts': [{'a': 1}, {'a': 2}],
        'ema': None,
    }


def test_options_set_what_exists():
    changed = content()
    apply_options(changed, ['seed=7', 'parts.1.a=None', 'model.layers.0=9', 'model.norm=layer', '+model.new.deep=1e-3'])
    assert changed['seed'] == 7 and changed['parts'] == [{'a': 1}, {'a': None}]
    assert changed['model']['layers'] == [9, 2] and changed['model']['norm'] == 'layer'
    assert changed['model']['new'] == {'deep': 1e-3}
    apply_options(changed, ["ema={'momentum': 0.1}"])
    assert changed['ema'] == {'momentum': 0.1}


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('sead=1', "no key 'sead'; did you mean 'seed'"),
        ('model.nrom=layer', "did you mean 'norm'"),
        ('model.dropout=0.1', 'write +model.dropout=0.1: LinearHead takes it'),
        ('parts.2.a=1', "'2' is no item of a list of 2"),
        ('seed.deep=1', 'has no keys'),
        ('ema.momentum=0.1', 'has no keys'),
        ('norm=layer', "did you mean 'model.norm'"),
        ('model.depth=4', "did you mean 'model.vit.timm_args.depth'"),
        ('vit.timm_args.depth=4', "did you mean 'model.vit.timm_args.depth'"),
        ('epochs=3', 'it is set by schedule.max_epochs=N'),
        ('seed', 'an option is K=V'),
    ],
)
def test_options_that_name_nothing_are_refused(option, message):
    with pytest.raises(ConfigError) as caught:
        apply_options(content(), [option])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1', 1),
        ('1e-3', 1e-3),
        ('(1, 2)', (1, 2)),
        ("dict(type='a.B', parts=[dict(x=1)])", {'type': 'a.B', 'parts': [{'x': 1}]}),
        ('dict(1)', 'dict(1)'),
        ('list(a=1)', 'list(a=1)'),
        ('a,b', 'a,b'),
        ('true', True),
        ('None', None),
        ('"x"', 'x'),
        ('', ''),
    ],
)
def test_values_are_python_literals_or_words(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize('name', ['../../etc/passwd', '..', '.a.b', 'a..b', '\ud800.x'])
def test_types_that_no_module_can_have_are_refused(config_file, name):
    with pytest.raises(ConfigError):
        load_config(config_file, [f'model.type={name}'])
