"""The training loop between mmengine's hook points: their order, mmengine's own hooks, and hooks of users."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.hooks import Hook

from vitdense.checkpoints.run import read_checkpoint
from vitdense.reporting.history import read_rows

MMENGINE = "custom_hooks=[dict(type='mmengine.hooks.IterTimerHook'),dict(type='mmengine.hooks.RuntimeInfoHook')]"
SHORT = ('schedule.max_iters=2', 'schedule.val_interval=2')


class Record(Hook):
    """Remember which hook points are called, with the step."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __getattribute__(self, name: str):
        if not name.startswith(('before_', 'after_')):
            return super().__getattribute__(name)
        return lambda runner, *args, **kwargs: self.calls.append((name, runner.iter))


def test_the_hook_points_of_mmengine_are_called_in_order(trainer):
    runner, record = trainer('run', SHORT), Record()
    runner.register_hook(record)
    runner.train()
    step = ['before_train_iter', 'after_train_iter']
    batches = ['before_val_iter', 'after_val_iter'] * 2
    validation = ['before_val', 'before_val_epoch', *batches, 'after_val_epoch']
    expected = ['before_run', 'before_train', 'before_train_epoch', *step, *step, 'before_save_checkpoint', *validation]
    expected += ['before_save_checkpoint', 'after_val', 'after_train_epoch', 'after_train']  # the best weights
    expected += ['before_save_checkpoint', 'after_run']
    assert [name for name, _ in record.calls] == expected  # the last save has the scores
    assert [number for name, number in record.calls if name in step] == [0, 0, 1, 1]


def test_a_resumed_run_calls_after_load_checkpoint(trainer, tmp_path):
    trainer('run', SHORT).train()
    content = read_checkpoint(tmp_path / 'run' / 'step_000002.pth')
    runner, record = trainer('run', ('schedule.max_iters=3',), checkpoint=content), Record()
    runner.register_hook(record)
    runner.train()
    assert record.calls[:3] == [('before_run', 0), ('after_load_checkpoint', 2), ('before_train', 2)]


def test_hooks_of_mmengine_see_the_run_and_do_not_change_it(trainer, tmp_path):
    trainer('plain').train()
    runner = trainer('hooked', (MMENGINE,))
    runner.train()
    rows = [row for row in read_rows(tmp_path / 'hooked' / 'metrics.csv') if 'lr' in row]
    hub = runner.message_hub
    losses, rates = (hub.get_scalar(f'train/{name}').data[0] for name in ('loss', 'lr'))
    assert [float(loss) for loss in losses] == pytest.approx([row['loss'] for row in rows])
    groups = runner.optim_wrapper.optimizer.param_groups
    share = groups[0]['base_lr'] / max(group['base_lr'] for group in groups)
    assert list(rates) == pytest.approx([row['lr'] * share for row in rows])
    assert len(hub.get_scalar('train/time').data[0]) == 8 and hub.get_info('max_iters') == 8
    assert hub.get_scalar('val/sem/mIoU').current() == runner.train_loop.history.metrics['sem/mIoU']
    plain, hooked = (read_checkpoint(tmp_path / name / 'step_000008.pth') for name in ('plain', 'hooked'))
    assert all(torch.equal(value, hooked['state_dict'][name]) for name, value in plain['state_dict'].items())


def test_a_hook_may_note_numbers_save_its_state_and_end_the_run(trainer, tmp_path):
    class Mine(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.train_loop.history.note({'mine': batch_idx + 0.5})
            if batch_idx == 2:
                runner.train_loop.stop_training = True

        def before_save_checkpoint(self, runner, checkpoint):
            checkpoint['mine'] = runner.iter

    runner = trainer('run')
    runner.register_hook(Mine())
    runner.train()
    assert runner.iter == 3
    rows = read_rows(tmp_path / 'run' / 'metrics.csv')
    assert [row['mine'] for row in rows if 'mine' in row] == [0.5, 1.5, 2.5]
    assert [row['step'] for row in rows if 'sem/mIoU' in row] == [3]  # the last weights are validated
    assert read_checkpoint(tmp_path / 'run' / 'step_000003.pth')['mine'] == 3


def test_a_step_of_the_loop_is_a_train_step_of_the_model(trainer):
    """`DenseModel.train_step` does the same with the same random numbers."""
    results = []
    for by_loop in (True, False):
        runner = trainer(f'run {by_loop}', ('ema=None',))
        batch = next(iter(runner.train_dataloader))
        model, wrapper = runner.model.train(), runner.optim_wrapper
        torch.manual_seed(1)
        if by_loop:
            loss, losses = runner.train_loop._forward(copy.deepcopy(batch))
            wrapper.backward(wrapper.scale_loss(loss))
            wrapper.step_if_finite(wrapper.clip_gradients())
        else:
            losses = model.train_step(batch, wrapper)
        results.append((losses, {name: value.clone() for name, value in model.state_dict().items()}))
    (losses, first), (others, second) = results
    assert losses.keys() == others.keys() and all(torch.equal(losses[key], others[key]) for key in losses)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
