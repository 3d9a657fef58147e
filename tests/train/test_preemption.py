"""Signals stop a run between two steps, and all processes of a run together."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import torch
from torch import distributed

from vitdense.checkpoints.run import find_checkpoint, read_checkpoint
from vitdense.train.preemption import StopRequest, fewest_batches, obey_signals


class SendAt:
    """A hook that sends the process a signal before a step."""

    priority = 'NORMAL'

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == self.step:
            os.kill(os.getpid(), self.number)


def test_a_closed_terminal_saves_and_leaves(trainer, tmp_path):
    runner = trainer('run')
    runner._hooks.insert(0, SendAt(2, signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(SystemExit) as left:
            runner.train()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert left.value.code == 129
    assert read_checkpoint(find_checkpoint(tmp_path / 'run'))['step'] == 3


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with obey_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_while_data_is_awaited_saves_the_steps_that_are_done(trainer, tmp_path):
    runner = trainer('run', ('schedule.val_interval=8',))
    dataset = runner._train_dataloader.dataset.dataset.dataset
    recorded = []

    class Stop:
        """Stands in for the data: the seventh image never comes, but a signal does."""

        def __getitem__(self, index):
            recorded.append(index)
            if len(recorded) == 7:
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError('the wait should have ended')
            return dataset[index]

        def __len__(self):
            return len(dataset)

        def __getattr__(self, name):
            return getattr(dataset, name)

    runner._train_dataloader.dataset.dataset.dataset = Stop()
    with pytest.raises(SystemExit) as left:
        runner.train()
    assert left.value.code == 143
    assert read_checkpoint(find_checkpoint(tmp_path / 'run'))['step'] == 3


def validate(rank: int, folder: str, results) -> None:
    """A validation of two ranks, one of which has a batch less; the second one is to stop at its second batch."""
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    cpu, request, number = torch.device('cpu'), StopRequest(), 4 - rank
    fewest = fewest_batches(number, cpu)
    assert fewest == 3
    for signalled in (False, True):
        for row in range(number):
            if signalled and rank == 1 and row == 1:
                request.on_stop(signal.SIGTERM, None)
            if row < fewest and (actual := request.read(cpu)) != (0, False):
                results.put((rank, row, *actual))
                return


def test_several_processes_leave_a_validation_together(tmp_path):
    context = multiprocessing.get_context('fork')
    results = context.Queue()
    ranks = [context.Process(target=validate, args=(rank, str(tmp_path), results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
        rank.kill()
    assert sorted(results.get(timeout=5) for _ in ranks) == [(0, 1, 15, False), (1, 1, 15, False)]
