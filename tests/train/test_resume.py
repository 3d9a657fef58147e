"""A run can be stopped and continued without any effect on its numbers."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from vitdense.checkpoints.resumable import read_resumable
from vitdense.checkpoints.run import find_checkpoint, read_checkpoint, write_checkpoint
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.errors import CheckpointError, ConfigError, DataError
from vitdense.reporting.history import read_rows


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
    actual = find_checkpoint(tmp_path / 'parts')
    assert actual.name == f'step_{step:06d}.pth'
    content = read_checkpoint(actual)
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
    assert read_checkpoint(tmp_path / 'run' / 'step_000004.pth')['samples_seen'] == 2 * 2 + 2 * 3


@pytest.fixture
def after_two(trainer, tmp_path):
    """The checkpoint of a run of two steps, and what a config with other options says about it."""
    trainer('run', ('schedule.max_iters=2', 'schedule.decay=constant', 'schedule.warmup_iters=0')).train()
    content = read_checkpoint(tmp_path / 'run' / 'step_000002.pth')

    def resume(*options: str, **changed):
        options = ('schedule.max_iters=4', 'schedule.decay=constant', 'schedule.warmup_iters=0', *options)
        return trainer('again', options, checkpoint={**content, **changed})

    return resume


@pytest.fixture
def logged(caplog):
    """The log lines of vitdense."""
    import logging

    logging.getLogger('vitdense').propagate = True
    logging.getLogger('vitdense').setLevel(logging.INFO)
    return caplog


def test_the_settings_of_the_optimizer_are_those_of_the_config(after_two, logged, tmp_path):
    optimizer = 'optim_wrapper.optimizer'
    runner = after_two(f'{optimizer}.lr=1e-5', f'{optimizer}.weight_decay=0.5', f'+{optimizer}.betas=(0.8, 0.99)')
    assert f'{optimizer}.lr: 0.001 -> 1e-05' in logged.text and f'{optimizer}.weight_decay: 0.05 -> 0.5' in logged.text
    assert f'{optimizer}.betas: not given -> (0.8, 0.99)' in logged.text
    assert 'schedule.max_iters: 2 -> 4' in logged.text and 'num_workers' not in logged.text
    runner.train()
    groups = runner.optim_wrapper.optimizer.param_groups
    assert max(group['lr'] for group in groups) == pytest.approx(1e-5)
    assert {group['weight_decay'] for group in groups} == {0.0, 0.5}
    assert all(tuple(group['betas']) == (0.8, 0.99) for group in groups)
    rows = read_rows(tmp_path / 'again' / 'metrics.csv')
    assert [row['lr'] for row in rows if 'lr' in row] == pytest.approx([1e-5, 1e-5])
    steps = {int(state['step']) for state in runner.optim_wrapper.optimizer.state.values()}
    assert steps == {4}  # the moments went on


def test_other_factors_of_the_same_groups_count(after_two, logged):
    runner = after_two('optim_wrapper.groups.decay=0.7')
    assert 'optim_wrapper.groups.decay: 0.5 -> 0.7' in logged.text
    runner.train()
    rates = {round(group['base_lr'] / 1e-3, 9) for group in runner.optim_wrapper.optimizer.param_groups}
    assert rates == {round(0.7**power, 9) for power in range(4)}


@pytest.mark.parametrize('old', [False, True])  # a checkpoint of an older version, without the names of parameters
@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('optim_wrapper.groups=None', 'groups are not those of the checkpoint'),
        ('+model.network.backbone.frozen=True', 'groups are not those of the checkpoint'),
        ('+optim_wrapper.groups.no_decay=()', 'groups are not those of the checkpoint'),
        ('optim_wrapper.optimizer.type=torch.optim.Adam', "the optimizer is not the checkpoint's"),
        ("optim_wrapper.optimizer=dict(type='torch.optim.SGD', lr=0.1)", "the optimizer is not the checkpoint's"),
        ('+optim_wrapper.optimizer.amsgrad=True', 'settings are not those of the checkpoint'),
    ],
)
def test_an_optimizer_that_cannot_go_on_is_refused(after_two, tmp_path, option, message, old):
    changed = {'parameter_groups': None} if old else {}
    with pytest.raises(ConfigError, match=message) as caught:
        after_two(option, **changed)
    assert caught.value.where == '--resume' and '--weights' in caught.value.fix
    assert not list((tmp_path / 'again').iterdir())  # also config.py is not written


def test_a_changed_seed_and_averaging_are_said(after_two, logged):
    after_two('seed=3', 'ema=None')
    assert 'the seed was 0 and is 3 now' in logged.text
    assert 'the average of the checkpoint is not used' in logged.text
    logged.clear()
    after_two('ema.momentum=0.2')
    assert 'ema.momentum: 0.1 -> 0.2' in logged.text and 'the seed was' not in logged.text


def test_averaging_can_begin_at_a_checkpoint(trainer, tmp_path, logged):
    trainer('run', ('schedule.max_iters=2', 'ema=None')).train()
    content = read_checkpoint(tmp_path / 'run' / 'step_000002.pth')
    trainer('run', ('schedule.max_iters=3',), checkpoint=content).train()
    assert 'the average begins at those of the checkpoint' in logged.text
    assert read_checkpoint(tmp_path / 'run' / 'step_000003.pth')['ema_updates'] == 1


def test_files_that_no_run_goes_on_from_say_what_to_do(trainer, tmp_path):
    from mmengine.logging import HistoryBuffer
    from safetensors.torch import save_file

    trainer('run', ('schedule.max_iters=2', 'schedule.val_interval=2')).train()
    weights = {'network.a': torch.zeros(1)}
    save_file(weights, tmp_path / 'weights.safetensors')
    torch.save(weights, tmp_path / 'plain.pth')
    torch.save({'state_dict': weights}, tmp_path / 'nested.pth')
    hub = {'loss': HistoryBuffer([1.0], [1])}  # what mmengine itself writes
    torch.save({'meta': {'epoch': 1}, 'state_dict': weights, 'message_hub': hub, 'optimizer': {}}, tmp_path / 'mm.pth')
    for path in (
        tmp_path / 'run' / 'best.pth',
        *(tmp_path / name for name in ('weights.safetensors', 'plain.pth', 'nested.pth', 'mm.pth')),
    ):
        with pytest.raises(CheckpointError, match='no checkpoint that a run can go on from') as caught:
            read_resumable(path)
        assert f'--weights {path}' in caught.value.fix
        assert ('mmengine' in caught.value.why) == (path.name == 'mm.pth')
    content = read_checkpoint(tmp_path / 'run' / 'step_000002.pth')
    write_checkpoint(tmp_path / 'odd.pth', {**content, 'step': 'two'})
    with pytest.raises(CheckpointError, match='no checkpoint that a run can go on from'):
        read_resumable(tmp_path / 'odd.pth')
    (tmp_path / 'broken.pth').write_bytes(b'<html>')
    with pytest.raises(CheckpointError, match='cannot be read'):
        read_resumable(tmp_path / 'broken.pth')


def test_resume_and_weights_exclude_each_other(config_file, tmp_path):
    with pytest.raises(ConfigError, match='exclude each other'):
        train(load_config(config_file), work_dir=tmp_path / 'run', resume='auto', weights='x.pth')


class FailAt:
    """A hook whose validation fails at a step."""

    priority = 'NORMAL'

    def __init__(self, step: int, where: str) -> None:
        self.step = step
        setattr(self, where, self._fail)

    def _fail(self, runner, *args, **kwargs):
        if runner.train_loop.iter == self.step:
            raise DataError('it fails', where='here', why='a test', fix='none')


@pytest.mark.parametrize('where', ['before_val_epoch', 'after_val_iter', 'after_val_epoch'])
@pytest.mark.parametrize('interval', [4, 100])
def test_a_validation_that_fails_loses_no_step(trainer, tmp_path, where, interval):
    options = (f'checkpoint.interval={interval}',)
    trainer('whole', options).train()
    runner = trainer('parts', options)
    runner._hooks.insert(0, FailAt(4, where))
    with pytest.raises(DataError):
        runner.train()
    content = read_resumable(find_checkpoint(tmp_path / 'parts'))
    assert content['step'] == 4 and content['validation_pending']
    trainer('parts', options, checkpoint=content).train()
    whole, parts = (read_checkpoint(tmp_path / name / 'step_000008.pth') for name in ('whole', 'parts'))
    assert equal(whole, parts)
    rows = [[row for row in read_rows(tmp_path / name / 'metrics.csv')] for name in ('whole', 'parts')]
    assert [row['step'] for row in rows[0]] == [row['step'] for row in rows[1]]  # no validation twice


def test_a_checkpoint_is_there_before_its_validation_begins(trainer, tmp_path):
    recorded = []

    class Look:
        priority = 'NORMAL'

        def before_val_epoch(self, runner):
            recorded.append(
                (find_checkpoint(runner.folder).name, read_checkpoint(runner.folder / f'step_{runner.iter:06d}.pth'))
            )

    runner = trainer('run')
    runner._hooks.append(Look())
    runner.train()
    assert [(name, content['validation_pending']) for name, content in recorded] == [
        ('step_000004.pth', True),
        ('step_000008.pth', True),
    ]
    assert not read_checkpoint(tmp_path / 'run' / 'step_000008.pth')['validation_pending']


def test_data_that_fails_loses_no_step(trainer, tmp_path):
    runner = trainer('run', ('schedule.val_interval=8', 'checkpoint.interval=8'))
    dataset = runner._train_dataloader.dataset
    original, count = type(dataset).__getitem__, [0]

    def fail(self, draw):
        count[0] += 1
        return DataError('bad label', where='x', why='y', fix='z') if count[0] == 6 else original(self, draw)

    class Failing(type(dataset)):
        __getitem__ = fail

    dataset.__class__ = Failing
    with pytest.raises(DataError, match='bad label'):
        runner.train()
    assert read_checkpoint(find_checkpoint(tmp_path / 'run'))['step'] == 2


def test_a_run_that_stopped_early_does_not_go_on(trainer, tmp_path):
    options = (
        'schedule.val_interval=1',
        'schedule.max_iters=50',
        "early_stopping={'monitor': 'sem/mIoU', 'patience': 2, 'min_delta': 1.0}",
    )
    trainer('run', options).train()
    content = read_checkpoint(tmp_path / 'run' / 'step_000003.pth')
    runner = trainer('run', options, checkpoint=content)
    runner.train()
    assert runner.iter == 3
    runner = trainer('run', (*options, 'early_stopping.patience=3', 'schedule.max_iters=4'), checkpoint=content)
    runner.train()
    assert runner.iter == 4


@pytest.mark.parametrize(
    'tail', [b'9,1.2e-', b'9,\0\0\0', b'\0' * 200_000, b'9,0.1\r\n', b'\xff\xfe,\r\n', b'x,' * 9 + b'\r\n']
)
def test_rows_that_cannot_be_read_are_left_out(trainer, tmp_path, tail, logged):
    trainer('run', ('schedule.max_iters=2',)).train()
    file = tmp_path / 'run' / 'metrics.csv'
    rows = read_rows(file)
    file.write_bytes(file.read_bytes() + tail)
    assert read_rows(file) == rows and '1 rows cannot be read' in logged.text
    (tmp_path / 'run' / 'last_checkpoint').write_bytes(b'\xff\xfe\0')
    content = read_resumable(find_checkpoint(tmp_path / 'run'))
    trainer('run', ('schedule.max_iters=3',), checkpoint=content).train()
    assert [row['step'] for row in read_rows(file) if 'lr' in row] == [1, 2, 3]


def test_a_file_without_any_row_is_no_error(tmp_path):
    for content in (b'', b'\0' * 300_000, b'\xff', b'step', b'a,b\r\n1,2\r\n'):
        (tmp_path / 'metrics.csv').write_bytes(content)
        assert read_rows(tmp_path / 'metrics.csv') == []
    assert read_rows(tmp_path) == []
