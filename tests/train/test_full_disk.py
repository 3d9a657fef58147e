"""A full disk costs a warning: nothing but the end of a run may fail, and nothing on the disk is lost."""

from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import sys
from collections import namedtuple
from fnmatch import fnmatch
from pathlib import Path

import pytest

from vitdense.checkpoints import run as checkpoints
from vitdense.checkpoints.run import checksum_matches, find_checkpoint, read_checkpoint, steps_in
from vitdense.commands.train import finish
from vitdense.config.load import load_config
from vitdense.errors import DiskError
from vitdense.reporting.console import SafeStdout
from vitdense.reporting.history import read_rows


class FullDisk:
    """A hook that gives writes to `/dev/full`, in files of these names, from one step to another."""

    priority = 'VERY_HIGH'

    def __init__(self, monkeypatch, folder: Path, pattern: str, since: int = 0, until: int = 100) -> None:
        self.since, self.until, self.now = since, until, 0
        self.rejected: set[str] = set()
        original = builtins.open

        def limited(file, mode='r', *args, **kwargs):
            path = Path(os.fsdecode(file)) if isinstance(file, str | bytes | os.PathLike) else Path()
            wanted = path.is_relative_to(folder) and fnmatch(path.name, pattern) and set(mode) & set('wa+x')
            if wanted and self.since <= self.now < self.until:
                self.rejected.add(path.name.split('.tmp.')[0])
                file = '/dev/full'
            return original(file, mode, *args, **kwargs)

        monkeypatch.setattr(builtins, 'open', limited)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.now = batch_idx


@pytest.fixture
def lines():
    """The lines of the log."""
    received: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: received.append(record.getMessage())
    logging.getLogger('vitdense').addHandler(handler)
    return received


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
@pytest.mark.parametrize(
    'pattern', ['metrics.csv*', 'metrics.json*', 'last_checkpoint*', 'config.py*', 'best.pth*', 'step_*', '*']
)
def test_what_a_full_disk_refuses_is_made_up_for(trainer, tmp_path, monkeypatch, lines, capfd, pattern):
    folder = tmp_path / 'run'
    disk = FullDisk(monkeypatch, folder, pattern, until=5)
    runner = trainer('run', ('checkpoint.interval=2', 'schedule.val_interval=2', 'sample_images=1'))
    runner._hooks.insert(0, disk)
    runner.train()
    assert disk.rejected and any('disk full' in line for line in lines)
    assert runner.iter == 8
    rows = read_rows(folder / 'metrics.csv')
    assert [row['step'] for row in rows if 'lr' in row] == list(range(1, 9))
    written = json.loads((folder / 'metrics.json').read_text())
    assert written['step'] == 8
    assert written['best'] == read_checkpoint(folder / 'best.pth')['best']
    assert (folder / 'last_checkpoint').read_text() == 'step_000008.pth\n'
    assert [path.name for path in steps_in(folder)] == ['step_000008.pth', 'step_000006.pth']
    assert not list(folder.glob('*.tmp.*'))
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    finish(runner)
    assert load_config(folder / 'config.py').seed == 0 and (folder / 'model' / 'model.json').exists()
    assert 'Traceback' not in capfd.readouterr().err  # as logging prints them


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_disk_that_stays_full_ends_the_run_with_a_disk_error(trainer, tmp_path, monkeypatch, lines):
    FullDisk(monkeypatch, tmp_path / 'run', '*')
    runner = trainer('run', ('checkpoint.interval=2',))
    with pytest.raises(DiskError):
        runner.train()
    assert runner.iter == 8 and runner.train_loop.history.best == {}  # nothing of it is on the disk
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    with pytest.raises(DiskError):
        finish(runner)


def test_room_for_two_checkpoints_is_enough(trainer, tmp_path, monkeypatch, lines):
    folder = tmp_path / 'run'
    folder.mkdir()
    trainer('first', ('schedule.max_iters=2', 'checkpoint.best=None')).train()
    size = (tmp_path / 'first' / 'step_000002.pth').stat().st_size
    usage = namedtuple('usage', 'total used free')
    least: list[int] = []

    def limited(path) -> usage:
        whole = [path for path in steps_in(folder) if checksum_matches(path)]
        least.append(len(whole))
        used = sum(path.stat().st_size for path in folder.glob('*.pth'))
        return usage(0, 0, int(2.5 * size) - used)

    monkeypatch.setattr(checkpoints.shutil, 'disk_usage', limited)
    runner = trainer('run', ('checkpoint.interval=1', 'checkpoint.best=None', 'checkpoint.keep=2'))
    runner.train()
    assert steps_in(folder)[0].name == 'step_000008.pth' and not runner.train_loop.saving.failed
    assert set(least[1:]) >= {1, 2} and 0 not in least[2:]  # never without a whole one
    assert any('step_000006.pth is deleted to make room' in line for line in lines)


def test_room_is_not_made_of_the_last_whole_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoints.write_checkpoint(tmp_path / f'step_{step:06d}.pth', {'state_dict': {}, 'step': step})
    (tmp_path / 'step_000002.pth').write_bytes(b'damaged')
    assert not checkpoints.delete_oldest(tmp_path, 10**15)  # it would not help
    assert checkpoints.delete_oldest(tmp_path, 10)
    assert [path.name for path in steps_in(tmp_path)] == ['step_000001.pth']
    assert not checkpoints.delete_oldest(tmp_path, 10)


@pytest.mark.parametrize('number', [errno.EMFILE, errno.EACCES, errno.EIO])
def test_other_refusals_delete_nothing_and_are_named(trainer, tmp_path, monkeypatch, lines, number):
    runner = trainer('run', ('checkpoint.interval=2', 'checkpoint.best=None'))
    original = builtins.open

    def refuse(file, mode='r', *args, **kwargs):
        if runner.iter == 6 and '.pth.tmp.' in str(file):
            raise OSError(number, os.strerror(number), str(file))
        return original(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', refuse)
    runner.train()
    assert any(os.strerror(number) in line for line in lines) and not any('disk full' in line for line in lines)
    assert find_checkpoint(tmp_path / 'run').name == 'step_000008.pth'


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoints.write_checkpoint(tmp_path / f'step_{step:06d}.pth', {'state_dict': {}, 'step': step})
    original = builtins.open

    def refuse(file, mode='r', *args, **kwargs):
        if 'step_000002' in str(file):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', refuse)
    assert find_checkpoint(tmp_path).name == 'step_000001.pth'
    assert not checkpoints.delete_oldest(tmp_path, 10)


def test_a_full_disk_behind_stdout_ends_nothing(monkeypatch):
    class Full:
        encoding = 'utf-8'

        def write(self, text=''):
            raise OSError(errno.ENOSPC, 'full')

        flush = write

    monkeypatch.setattr(sys, 'stdout', Full())
    stream = SafeStdout()
    assert stream.write('text') == 4 and stream.encoding == 'utf-8'
    stream.flush()
