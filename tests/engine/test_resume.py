"""A run can be stopped and continued, and nobody can tell from its numbers."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from vitdense.engine.checkpoints import find_checkpoint, read_checkpoint
from vitdense.engine.history import read_rows
from vitdense.errors import ConfigError


class StopAt:
    """A hook that sends the process a signal during a step or a validation."""

    def __init__(self, step: int, *, during_validation: bool = False) -> None:
        self.step = step
        self.during_validation = during_validation
        self.priority = 'NORMAL'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx + 1 == self.step and not self.during_validation:
            os.kill(os.getpid(), signal.SIGTERM)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.train_loop.iter == self.step and self.during_validation and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def equal(first, second) -> bool:
    """Compare two checkpoints, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(equal(*pair) for pair in zip(first, second, strict=True))
    return first == second


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(('step', 'during_validation'), [(5, False), (4, True)])
def test_stopped_and_resumed_equals_uninterrupted(trainer, tmp_path, workers, step, during_validation):
    options = (f'train_dataloader.num_workers={workers}', f'optim_wrapper.accumulative_counts={1 + workers}')
    trainer('whole', options).train()

    runner = trainer('parts', options)
    runner._hooks.insert(0, StopAt(step, during_validation=during_validation))
    with pytest.raises(SystemExit) as left:
        runner.train()
    assert left.value.code == 143
    found = find_checkpoint(tmp_path / 'parts')
    assert found.name == f'step_{step:06d}.pth'
    content = read_checkpoint(found)
    assert content['validation_pending'] is during_validation
    if workers == 1 and step == 5:
        return  # gradients of half an accumulated step are not kept; the file is whole, that is all
    trainer('parts', options, checkpoint=content).train()

    whole, parts = (read_checkpoint(tmp_path / name / 'step_000008.pth') for name in ('whole', 'parts'))
    assert equal(whole.pop('state_dict'), parts.pop('state_dict'))
    assert equal(whole.pop('training_state_dict'), parts.pop('training_state_dict'))
    assert equal(whole, parts)  # optimizer, counts, metrics, config, ...
    rows = [read_rows(tmp_path / name / 'metrics.csv') for name in ('whole', 'parts')]
    for first, second in zip(*rows, strict=True):
        assert all(first.get(key) == second.get(key) for key in ('step', 'loss', 'lr', 'grad_norm', 'sem/mIoU'))


def test_the_seed_decides_and_workers_do_not(trainer, tmp_path):
    losses = []
    for name, options in (
        ('a', ()),
        ('b', ('train_dataloader.num_workers=2',)),
        ('c', ('seed=1',)),
    ):
        trainer(name, (*options, 'schedule.max_iters=4')).train()
        losses.append([row.get('loss') for row in read_rows(tmp_path / name / 'metrics.csv')])
    assert losses[0] == losses[1] != losses[2]


def test_a_checkpoint_of_another_model_is_refused_with_a_diff(trainer, tmp_path):
    trainer('run', ('schedule.max_iters=2',)).train()
    content = read_checkpoint(tmp_path / 'run' / 'step_000002.pth')
    with pytest.raises(ConfigError, match='another model') as caught:
        trainer('other', ('model.network.backbone.timm_args.embed_dim=32',), checkpoint=content)
    assert len(caught.value.why.splitlines()) <= 4
    assert 'checkpoint (1, 1, 24), config (1, 1, 32)' in caught.value.why
    content['classes'] = {**content['classes'], 'semantic': ['sky', 'sea']}
    with pytest.raises(ConfigError, match='another model') as caught:
        trainer('other', checkpoint=content)
    assert "semantic: checkpoint ['sky', 'sea']" in caught.value.why


def test_a_longer_run_goes_on_and_a_larger_batch_is_said(trainer, tmp_path, caplog):
    import logging

    logging.getLogger('vitdense').propagate = True
    trainer('run', ('schedule.max_iters=2',)).train()
    content = read_checkpoint(tmp_path / 'run' / 'step_000002.pth')
    runner = trainer('run', ('schedule.max_iters=4', 'train_dataloader.batch_size=3'), checkpoint=content)
    assert 'an update was of 2 images (batches of 2 images) and is of 3 now' in caplog.text
    runner.train()
    assert read_checkpoint(tmp_path / 'run' / 'step_000004.pth')['drawn'] == 2 * 2 + 2 * 3
