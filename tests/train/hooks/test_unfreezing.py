"""Freeze schedules: frozen weights do not change, stages follow from the step, and a resumed run goes on exactly."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mmengine.hooks import Hook

from vitdense.checkpoints.run import read_checkpoint
from vitdense.config.load import load_config
from vitdense.errors import ConfigError
from vitdense.registry import build
from vitdense.train.build import make_trainer
from vitdense.train.hooks.unfreezing import UnfreezeHook

HOOK = "custom_hooks=[dict(type='vitdense.train.hooks.unfreezing.UnfreezeHook', steps=({}))]"
BACKBONE = 'network.backbone.model.'


class Watch(Hook):
    """Remember which parameters each step moved, and which parts were in training mode."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.moved: list[set[str]] = []
        self.modes: list[tuple[bool, ...]] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = {name: value.detach().clone() for name, value in runner.network_model.named_parameters()}
        vit = runner.network_model.network.backbone
        self.modes.append((vit.training, *(block.training for block in vit.model.blocks)))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        now = dict(runner.network_model.named_parameters())
        self.moved.append({name for name, value in self.before.items() if not torch.equal(value, now[name])})


def parts(names: set[str]) -> set[str]:
    """'block 0', 'embedding', 'norm' of the ViT that are in `names`, and 'head'."""
    actual = set()
    for name in names:
        first, second, *_ = f'{name.removeprefix(BACKBONE)}.'.split('.')
        vit = {'blocks': f'block {second}', 'norm': 'norm'}.get(first, 'embedding')
        actual.add(vit if name.startswith(BACKBONE) else 'head')
    return actual


@pytest.mark.parametrize('counts', [1, 2])
def test_the_vit_rests_and_is_freed_from_the_top(trainer, counts):
    options = (HOOK.format('2, 4'), 'schedule.warmup_iters=0', f'optim_wrapper.accumulative_counts={counts}')
    runner = trainer('run', options)
    watch = Watch()
    runner._hooks.append(watch)
    runner.train()
    top, every = {'head', 'norm', 'block 1'}, {'head', 'norm', 'block 0', 'block 1', 'embedding'}
    expected = [{'head'}, {'head'}, top, top, every, every, every, every]
    if counts == 2:
        expected = [set() if step % 2 == 0 else there for step, there in enumerate(expected)]
    assert [parts(names) for names in watch.moved] == expected
    assert watch.modes == [(False, False, False)] * 2 + [(True, False, True)] * 2 + [(True, True, True)] * 4


def test_stopped_and_resumed_equals_uninterrupted(trainer, tmp_path):
    options = (HOOK.format('3, 6'), 'schedule.decay=constant')
    trainer('whole', options).train()
    whole = read_checkpoint(tmp_path / 'whole' / 'step_000008.pth')
    for stop in (4, 7):  # within the second and the third stage
        trainer('parts', (*options, f'schedule.max_iters={stop}')).train()
        content = read_checkpoint(tmp_path / 'parts' / f'step_00000{stop}.pth')
        trainer('parts', options, checkpoint=content).train()
        again = read_checkpoint(tmp_path / 'parts' / 'step_000008.pth')
        for key in ('state_dict', 'training_state_dict'):
            assert all(torch.equal(value, again[key][name]) for name, value in whole[key].items())
        assert again['optimizer']['state'].keys() == whole['optimizer']['state'].keys()


def test_what_cannot_be_is_an_error(trainer):
    for steps in ((), (0, 5), (5, 5), (6, 2)):
        with pytest.raises(ConfigError, match='steps ascend'):
            build(dict(type=UnfreezeHook, steps=steps))
    runner = trainer('run', (HOOK.format('2,'), '+model.network.backbone.frozen=True'))
    with pytest.raises(ConfigError, match='nothing to unfreeze'):
        runner.train()


def _train(rank: int, config: str, folder: str) -> dict[str, torch.Tensor]:
    options = (HOOK.format('2, 4'), 'schedule.max_iters=6', 'schedule.val_interval=6', 'checkpoint.best=None')
    runner = make_trainer(load_config(config, options), folder, device='cpu')
    runner.train()
    return {name: value.clone() for name, value in runner.network_model.named_parameters()}


def test_two_processes_agree_through_all_stages(run_ranks, config_file, tmp_path):
    first, second = run_ranks(partial(_train, config=str(config_file), folder=str(tmp_path / 'run')))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
