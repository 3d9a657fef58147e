"""A work directory belongs to one run at a time, whatever ends it, and can always be used again."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from vitdense.checkpoints import work_dir
from vitdense.checkpoints.model_folder import read_model_folder, save_model_folder
from vitdense.checkpoints.run import delete_temporary_files, read_checkpoint, steps_in, write_checkpoint
from vitdense.checkpoints.work_dir import LOCK, locked, move_later
from vitdense.commands.train import finish, train
from vitdense.config.load import load_config
from vitdense.errors import ConfigError, DiskError


@pytest.fixture
def train_tiny(config_file, tmp_path, one_thread, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py'])

    def run(*options: str, resume: str | None = None, name: str = 'run'):
        cfg = load_config(config_file, options)
        return train(cfg, work_dir=tmp_path / name, resume=resume, device='cpu')

    return run


def in_child(function) -> int:
    """Run `function` in a process of its own; its exit code, 9 when it was killed."""
    child = os.fork()
    if not child:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number: int, folder: Path, function) -> int:
    """Run `function` in a process that ends without any cleaning up before file operation `number` in `folder`."""
    count = 0

    def look(event: str, arguments: tuple) -> None:
        nonlocal count
        write = event == 'open' and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if write or event in ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.chmod', 'vitdense.fsync'):
            count += str(folder) in str(arguments[0]) or event in ('vitdense.fsync', 'os.rmdir', 'os.remove')
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        fsync = os.fsync
        os.fsync = lambda handle: (sys.audit('vitdense.fsync', handle), fsync(handle))
        sys.addaudithook(look)
        function()

    return in_child(run)


@pytest.mark.parametrize('again', [False, True])
def test_a_kill_at_any_file_operation_of_the_end_can_be_mended(train_tiny, tmp_path, again):
    runner = train_tiny('schedule.max_iters=2', 'schedule.val_interval=2')
    folder = tmp_path / 'run'
    number, ended = -again, False
    while not ended:
        number += 2  # every other one here, and those between them in the other case
        if not again:
            shutil.rmtree(folder / 'model')
        ended = killed_at(number, folder, lambda: finish(runner)) == 0
        delete_temporary_files(folder)
        assert not [*folder.glob('*.tmp.*'), *folder.glob('*.old.*')]
        if again:
            assert read_model_folder(folder / 'model')  # there was one before, and one is there at any time
        finish(runner)
        assert read_model_folder(folder / 'model')[1]['step'] == 2
    assert number > 10


def test_a_run_killed_while_the_model_is_written_is_resumed_or_replaced(train_tiny, tmp_path):
    folder = tmp_path / 'run'
    train_tiny('schedule.max_iters=2', 'schedule.val_interval=2')
    for resume in ('auto', None):
        (folder / 'model').rename(folder / 'model.tmp.123')
        (folder / 'metrics.json').rename(folder / 'metrics.json.tmp.123')
        (folder / 'heads').mkdir(exist_ok=True)
        (folder / 'heads' / 'sem.safetensors.tmp.123').touch()
        train_tiny('schedule.max_iters=2', 'schedule.val_interval=2', resume=resume)
        assert read_model_folder(folder / 'model')[1]['step'] == 2
        assert not list(folder.rglob('*.tmp.*'))


def test_a_model_that_was_moved_out_of_the_way_comes_back(tmp_path):
    (tmp_path / 'model.old.7').mkdir()
    (tmp_path / 'model.old.7' / 'model.json').write_text('first')
    (tmp_path / 'notes.tmp.old').mkdir()  # not of a run
    delete_temporary_files(tmp_path)
    assert (tmp_path / 'model' / 'model.json').read_text() == 'first'
    (tmp_path / 'model.old.7').mkdir()
    delete_temporary_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model', 'notes.tmp.old']


def test_a_file_in_place_of_the_model_is_refused_before_training(train_tiny, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'model').write_text('mine')
    with pytest.raises(DiskError, match="'model' in the work directory is a file"):
        train_tiny()
    with pytest.raises(DiskError, match='could not write the model folder'):
        save_model_folder(tmp_path / 'run' / 'model', {}, {}, metainfo={})
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['model']
    assert (tmp_path / 'run' / 'model').read_text() == 'mine'


def test_a_second_run_is_kept_out_until_the_first_ends(tmp_path, train_tiny):
    folder = tmp_path / 'run'
    folder.mkdir()
    ready, log = os.pipe()
    child = os.fork()
    if not child:
        with locked(folder):
            helper = os.fork()
            if helper:
                os.write(log, str(helper).encode())
            time.sleep(30)  # the helper outlives its parent, as loader workers do for some seconds
            os._exit(0)
    helper = int(os.read(ready, 20))
    with pytest.raises(ConfigError, match='another run works in this folder') as caught:
        train_tiny()
    assert f'process {child} on' in caught.value.why
    assert [path.name for path in folder.iterdir()] == [LOCK]  # nothing of it was touched
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(folder), pytest.raises(ConfigError, match='another run'), locked(folder):
        pass
    os.kill(helper, signal.SIGKILL)
    assert not list(folder.iterdir())  # the lock went with the last run


@pytest.mark.parametrize('function', ['open', 'lockf'])
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog, function):
    import logging

    logging.getLogger('vitdense').propagate = True
    number = errno.ENOSPC if function == 'open' else errno.ENOLCK

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if function == 'open' else fcntl, function, refuse)
    with locked(tmp_path):
        assert 'cannot be locked' in caplog.text


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(DiskError, match='cannot be written to'), locked(tmp_path):
        pass


def test_a_lock_file_that_its_owner_deletes_meanwhile_does_not_count(tmp_path, monkeypatch):
    original, calls = fcntl.lockf, []

    def deleted_before(file, kind):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(file)
        return original(file, kind)

    monkeypatch.setattr(work_dir.fcntl, 'lockf', deleted_before)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / LOCK).exists()


def write_steps(folder: Path, *steps: int, best: int = 0) -> None:
    for step in steps:
        write_checkpoint(folder / f'step_{step:06d}.pth', {'state_dict': {}, 'step': step})
    if best:
        write_checkpoint(folder / 'best.pth', {'state_dict': {}, 'step': best, 'best': {'step': best, 'a/b': 0.5}})


def test_checkpoints_after_the_one_that_is_resumed_are_moved(tmp_path):
    write_steps(tmp_path, 2, 4, 6, best=4)
    assert move_later(tmp_path, 6) is None
    (tmp_path / 'step_000006.pth').write_bytes(b'')
    assert move_later(tmp_path, 4) == tmp_path / 'earlier-1'
    assert {path.name for path in (tmp_path / 'earlier-1').iterdir()} == {'step_000006.pth', 'step_000006.pth.sha256'}
    move_later(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {'step_000002.pth', 'step_000002.pth.sha256'}
    assert read_checkpoint(tmp_path / 'earlier-2' / 'best.pth')['step'] == 4


def test_going_back_to_an_older_checkpoint_keeps_what_is_new(train_tiny, tmp_path):
    folder = tmp_path / 'run'
    options = ('schedule.val_interval=2', 'checkpoint.interval=2', 'checkpoint.keep=1')
    train_tiny('schedule.max_iters=4', *options, 'checkpoint.keep=2')
    runner = train_tiny('schedule.max_iters=3', *options, resume=str(folder / 'step_000002.pth'))
    assert [path.name for path in steps_in(folder)] == ['step_000003.pth']
    assert read_checkpoint(folder / 'best.pth')['best'] == runner.train_loop.history.best
    assert (folder / 'earlier-1' / 'step_000004.pth').exists()
    assert read_model_folder(folder / 'model')[1]['step'] == runner.train_loop.history.best['step'] <= 3
    # the same from another folder: its history comes along, and what was in the way is kept
    other = train_tiny('schedule.max_iters=4', *options, resume=str(folder), name='other')
    assert [row['step'] for row in other.train_loop.history.rows if 'lr' in row] == [1, 2, 3, 4]
    assert other.train_loop.history.best['step'] in (2, 3, 4) and (tmp_path / 'other' / 'best.pth').exists()
    train_tiny('schedule.max_iters=4', *options, resume=str(folder), name='other')
    assert (tmp_path / 'other' / 'earlier-1' / 'metrics.csv').exists()
