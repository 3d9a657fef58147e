"""Every value of a config is checked when it is loaded: its type, its range, and what a command line means by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitdense.config.checks import check_config
from vitdense.config.load import load_config
from vitdense.config.overrides import parse_value
from vitdense.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = 'model.network.branches.sem.adapter'


def error_of(config_file: Path, *options: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, options)
    assert caught.value.why and caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ('option', 'message', 'allowed'),
    [
        ('optim_wrapper.clip_grad=1.0', 'optim_wrapper.clip_grad is 1.0', 'keys max_norm, by_part'),
        ('optim_wrapper.clip_grad=dict(max_norm=-1)', 'optim_wrapper.clip_grad.max_norm is -1', 'a number above 0'),
        ('optim_wrapper.clip_grad=dict(norm=1)', "unknown key 'optim_wrapper.clip_grad.norm'", 'max_norm'),
        ('optim_wrapper.accumulative_counts=1.5', 'accumulative_counts is 1.5', 'a whole number from 1 on'),
        ('optim_wrapper.accumulative_counts=2.0', 'accumulative_counts is 2.0', 'a whole number from 1 on'),
        ('optim_wrapper.optimizer=None', 'optim_wrapper.optimizer is None', 'a part'),
        ('optim_wrapper.optimizer.lr=abc', "optim_wrapper.optimizer.lr is 'abc'", 'a number from 0 on'),
        ('optim_wrapper.optimizer.lr=nan', "optim_wrapper.optimizer.lr is 'nan'", 'a number'),
        ('optim_wrapper.optimizer.lr=1e999', 'optim_wrapper.optimizer.lr is inf', 'a number'),
        ('optim_wrapper.optimizer.lr=True', 'optim_wrapper.optimizer.lr is True', 'a number'),
        ('+optim_wrapper.optimizer.betas=0.9', 'optim_wrapper.optimizer.betas is 0.9', 'a list of 2'),
        ('+optim_wrapper.optimizer.betas=(0.9,1.0)', 'optim_wrapper.optimizer.betas.1 is 1.0', 'below 1'),
        ('optim_wrapper.groups.decay=0', 'optim_wrapper.groups.decay is 0', 'above 0 to 1'),
        ('schedule.milestones=20', 'schedule.milestones is 20', 'a list'),
        ('schedule.warmup_iters=-3', 'schedule.warmup_iters is -3', 'from 0 on'),
        ('schedule.warmup_iters=ten', "schedule.warmup_iters is 'ten'", 'a whole number'),
        ('schedule.power=high', "schedule.power is 'high'", 'a number'),
        ('schedule.decay=cosin', "did you mean 'cosine'", "one of 'poly'"),
        ('checkpoint.keep=all', "checkpoint.keep is 'all'", 'a whole number from 1 on'),
        ('checkpoint.keep=0', 'checkpoint.keep is 0', 'from 1 on'),
        ('ema=dict(momentum=2)', 'ema.momentum is 2', 'above 0 and below 1'),
        ('early_stopping=dict(patience=3)', 'early_stopping.monitor is missing', 'a word'),
        ('early_stopping=dict(monitor="sem/mIoU",patience=0)', 'early_stopping.patience is 0', 'from 1 on'),
        ('custom_hooks=None', 'custom_hooks is None', 'a list'),
        ('sample_images=many', "sample_images is 'many'", 'from 0 on'),
        ('loggers=tensorboard', "loggers is 'tensorboard'", 'a list'),
        ('loggers=[tensorbord]', "did you mean 'tensorboard'", "one of 'tensorboard'"),
        ('train_dataloader.dataset.transforms=None', 'train_dataloader.dataset.transforms is None', 'a list'),
        ('train_dataloader.dataset.size=()', 'train_dataloader.dataset.size is ()', 'a whole number from 1 on'),
        ('train_dataloader.dataset.num_images=None', 'train_dataloader.dataset.num_images is None', 'from 1 on'),
        ('+train_dataloader.dataset.nois=1', "did you mean 'noise'", 'num_images, size'),
        ('val_evaluator=()', 'val_dataloader has no metric', 'not scored'),
        (f'+{ADAPTER}.layers=1', f'{ADAPTER}.layers is 1', 'a list'),
        (f'+{ADAPTER}.layers=()', f'{ADAPTER}.layers is ()', 'not empty'),
        (f'+{ADAPTER}.layers=[1.5]', f'{ADAPTER}.layers.0 is 1.5', 'a whole number'),
        ('model.network.branches.sem.head=3', 'model.network.branches.sem.head is 3', 'a part'),
        ('model.tasks.sem=None', 'model.tasks.sem is None', 'a part'),
        ('model.network.backbone.patch_size=0', 'model.network.backbone.patch_size is 0', 'from 1 on'),
        ('model.network.backbone.img_size=(64,)', 'model.network.backbone.img_size is (64,)', 'a list of 2'),
        ('model.network.backbone.drop_path=-1', 'model.network.backbone.drop_path is -1', 'from 0 and below 1'),
        ('model.network.backbone.timm_args.depth=-2', 'model.network.backbone.timm_args.depth is -2', 'from 1 on'),
        ('+num_classes=3', "unknown key 'num_classes'", 'the keys of a config'),
        ('+schedule.epochs=3', "unknown key 'schedule.epochs'", 'the keys of schedule'),
        ('+val_dataloader.shuffle=True', "unknown key 'val_dataloader.shuffle'", 'the keys of val_dataloader'),
    ],
)
def test_a_wrong_option_names_key_value_and_what_is_allowed(option, message, allowed, config_file):
    error = error_of(config_file, option)
    assert message in str(error) and allowed in error.why
    assert 'val_evaluator' in option or f'--cfg-options {option.lstrip("+")}' == error.where


@pytest.mark.parametrize(
    'key',
    [
        'model',
        'model.network',
        'model.network.backbone',
        'model.network.branches.sem.head',
        'model.tasks.sem',
        'train_dataloader.dataset',
        'val_evaluator.0',
        'optim_wrapper.optimizer',
        'optim_wrapper.groups',
    ],
)
def test_a_class_of_another_kind_is_refused(key, config_file):
    error = error_of(config_file, f"{key}=dict(type='pathlib.PurePath')")
    assert error.message.startswith(f"{key}.type is 'pathlib.PurePath'") and error.why.startswith('it is a')
    assert 'a hook' in error_of(config_file, "custom_hooks=[dict(type='pathlib.PurePath')]").why


def test_a_wrong_value_in_the_file_is_refused_too(config_file):
    config_file.write_text(config_file.read_text() + "schedule['warmup_iters'] = -1\ndata_root = 2024\n")
    error = error_of(config_file, 'schedule.warmup_iters=1')
    assert error.message == 'data_root is 2024' and error.fix == "write '2024', with quotes"
    assert str(config_file) in error.where
    assert 'schedule.warmup_iters is -1' in str(error_of(config_file, 'data_root=x'))


@pytest.mark.parametrize('value', ['2024', '1e3', '2024_01', '1,2'])
def test_what_looks_like_a_number_is_a_word_where_a_path_or_name_is_meant(value, tmp_path):
    config_name = ROOT / 'configs/semantic/linear_vit_ti_camvid.py'
    keys = ('train_dataloader.dataset.images', 'val_dataloader.dataset.labels', 'test_dataloader.dataset.images')
    more = ('data_root', 'model.network.backbone.pretrained', '+work_dir', '+train_dataloader.dataset.split')
    cfg = load_config(config_name, [f'{key}={value}' for key in (*keys, *more)])
    assert cfg.data_root == cfg.work_dir == cfg.model.network.backbone.pretrained == value
    assert cfg.train_dataloader.dataset.images == cfg.train_dataloader.dataset.split == value
    assert cfg.val_dataloader.dataset.labels == cfg.test_dataloader.dataset.labels == value


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('[ground,box]', ['ground', 'box']),
        ('[sem/mIoU, det/AP]', ['sem/mIoU', 'det/AP']),
        ('(a, 1, [b])', ['a', 1, ['b']]),
        ('[a,]', ['a']),
        ('[a', '[a'),
        ("[a, 'b]", "[a, 'b]"),
    ],
)
def test_words_in_a_list_need_no_quotes(text, value):
    assert parse_value(text) == value


def paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every key and item within `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


def passes(content: dict, holder: Any, key: Any, value: Any) -> bool:
    """Put `value` into the config and return whether the check lets it pass."""
    holder[key] = value
    try:
        check_config(content, 'file.py')
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    'config_name',
    [
        'configs/detection/finetune_small.py',
        'configs/detection/eomt_dinov2_l_coco_640.py',
        'configs/semantic/upernet_vitadapter_deit_t_ade20k.py',
        'configs/classification/finetuned_deit3_s_imagenet.py',
        'configs/multitask/dino_linear_dinov2_s_coco_ade20k.py',
    ],
)
def test_no_value_passes_that_is_of_another_kind(config_name):
    """Whatever stands in place of a value is a ConfigError or is checked as well as the value it replaces."""
    content = load_config(ROOT / config_name)
    content['test_dataloader'] = content['test_evaluator'] = None
    passed: list[str] = []
    for path in paths(content):
        holder = content
        for key in path[:-1]:
            holder = holder[key]
        foreign = isinstance(holder, dict) and str(holder.get('type')).startswith('torchvision')
        if foreign or path[-1] in ('best', 'pretrained') or 'timm_args' in path:
            continue  # parts of others check themselves when they are made; a word or several; True or a file
        kept, name = holder[path[-1]], '.'.join(map(str, path))
        wrong: list[Any] = [object(), float('nan'), {'no': 'type'}, [None], [[]]]
        if isinstance(kept, bool | int | float):
            wrong += ['abc', -7.5, []]
        if isinstance(kept, list | tuple):
            wrong += ['abc']
        if isinstance(kept, str):
            wrong += [7, []]
        if isinstance(kept, dict) and 'type' in kept:
            wrong += ['abc', 7, kept | {'nosuch': 1}, kept | {'type': kept['type'] + 'x'}]
        passed += [f'{name} = {value!r}' for value in wrong if passes(content, holder, path[-1], value)]
        holder[path[-1]] = kept
    assert not passed
