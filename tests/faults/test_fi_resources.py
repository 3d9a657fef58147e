"""FI-17 and FI-28 to FI-30: full disks, no home, little shared memory, dead workers and dead ranks."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

import tools.demo as demo
from tests.faults.runs import Run, as_tool, ended, in_process, make_run
from vitdense.checkpoints.run import checksum_matches, steps_in
from vitdense.errors import ConfigError
from vitdense.train.trainer import TrainingLoop

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
NEW_MOUNTS, PRIVATE, REMOUNT = 0x20000, 0x44000, 0x20  # CLONE_NEWNS; MS_REC | MS_PRIVATE; MS_REMOUNT


def libc(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


def small_disk(folder: str | Path, size: str, *, flags: int = 0) -> None:
    """Mount a file system in memory at `folder`, for this process and its children alone."""
    if not flags:
        libc('unshare', NEW_MOUNTS)
        libc('mount', b'none', b'/', None, PRIVATE, None)
    libc('mount', b'tmpfs', str(folder).encode(), b'tmpfs', flags, f'size={size}'.encode())


@pytest.fixture(scope='module', autouse=True)
def mounts(tmp_path_factory):
    folder = tmp_path_factory.mktemp('disk')
    if ended(in_process(lambda: small_disk(folder, '1m'))):
        pytest.skip('needs the right to mount a file system')


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Run:
    """An uninterrupted run."""
    run = make_run('semantic-0', tmp_path_factory.mktemp('whole'), 'run')
    assert ended(in_process(run.train)) == 0
    return run


def on_disk(run: Run, size: str, function: Callable[[], Any]) -> int:
    """Run `function` in a process whose `run.folder` is a small disk; return its exit code."""

    def work() -> None:
        run.folder.mkdir(exist_ok=True)
        small_disk(run.folder, size)
        function()

    return ended(in_process(work))


def code_of(function: Callable[[], Any]) -> int:
    try:
        as_tool(function)()
    except SystemExit as error:
        return int(error.code or 0)
    raise AssertionError('a tool ends with SystemExit')


def test_fi_17_a_disk_with_room_for_one_checkpoint(whole, tmp_path, capfd):
    run = make_run('semantic-0', tmp_path, 'run')
    size = sum(path.stat().st_size for path in (steps_in(whole.folder)[0], whole.folder / 'best.pth'))

    def work() -> None:
        assert code_of(run.train) == 7
        assert steps_in(run.folder) and all(checksum_matches(path) for path in run.folder.glob('*.pth'))
        assert list(run.folder.glob('*.tmp.*')) == []
        small_disk(run.folder, '50m', flags=REMOUNT)
        assert code_of(lambda: run.train(resume='auto')) == 0
        assert run.differs(whole) == ''

    assert on_disk(run, str(size + 150_000), work) == 0
    out, err = capfd.readouterr()
    assert 'disk full: ' in out and 'not written (free ' in out and 'error[disk]' in err and 'Traceback' not in err


@pytest.mark.parametrize('left', [0, 4096, 40960])
def test_fi_17_a_disk_without_any_room(whole, tmp_path, capfd, left):
    run = make_run('semantic-0', tmp_path, 'run')

    def work() -> None:
        with open(run.folder / 'filling', 'wb', buffering=0) as file:
            while (free := shutil.disk_usage(run.folder).free - left) > 0:
                file.write(bytes(min(free, 2**20)))
        assert code_of(run.train) == 7
        assert [path.name for path in run.folder.rglob('*') if path.suffix in ('.pth', '.tmp') and path.is_file()] == []
        (run.folder / 'filling').unlink()
        assert code_of(lambda: run.train(resume='auto')) == 0
        assert run.differs(whole) == ''

    assert on_disk(run, '20m', work) == 0
    err = capfd.readouterr().err
    assert err.count('error[disk]') == 1 and 'Traceback' not in err


def test_fi_28_a_window_without_a_display_is_refused_at_once(tmp_path, monkeypatch):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match='--show needs a display'):
        demo.main([str(tmp_path / 'x.png'), '--model', str(tmp_path), '--show'])


def test_fi_29_little_shared_memory(whole, tmp_path, capfd):
    run = make_run('semantic-4', tmp_path, 'run')

    def work() -> None:
        small_disk('/dev/shm', '1m')
        run.train()

    assert ended(in_process(work)) == 0
    assert run.numbers() == whole.numbers()
    assert '/dev/shm has 1 MB free, too little for 4 workers' in capfd.readouterr().out


def test_fi_29_a_killed_worker(whole, tmp_path, monkeypatch, capfd):
    run = make_run('semantic-4', tmp_path, 'run')
    original, calls = TrainingLoop._forward, []

    def kill_one(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            os.kill(self.dataloader._iterator._workers[1].pid, signal.SIGKILL)
            self.dataloader._iterator._workers[1].join(10)
        return original(self, batch)

    start = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, '_forward', kill_one)
        code = ended(in_process(as_tool(run.train)))
    assert code == 6 and time.monotonic() - start < 120
    err = capfd.readouterr().err
    assert err.count('error[resources]') == 1 and 'worker 1 was killed by SIGKILL' in err and '--workers 0' in err
    assert 'Traceback' not in err and steps_in(run.folder)[0].name == 'step_000003.pth'
    again = run._replace(options=(*run.options, 'train_dataloader.num_workers=0'))
    assert ended(in_process(lambda: again.train(resume='auto'))) == 0
    assert run.numbers() == whole.numbers()


def test_fi_30_a_rank_that_fails_ends_the_others(tmp_path, monkeypatch, capfd):
    run = make_run('three tasks-0', tmp_path, 'run')
    original, calls = TrainingLoop._forward, []

    def fail(self, batch):
        calls.append(batch)
        if len(calls) == 2 and distributed.get_rank() == 1:
            raise RuntimeError('rank 1 fails')
        return original(self, batch)

    monkeypatch.setattr(TrainingLoop, '_forward', fail)
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')

    def rank(number: int) -> Callable[[], None]:
        def work() -> None:
            distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=number, world_size=2)
            run.train()

        return work

    ranks = [in_process(rank(number)) for number in range(2)]
    deadline, failed = time.monotonic() + 300, {}
    while len(failed) < 2 and time.monotonic() < deadline:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in ranks:
            failed[ranks.index(process)] = time.monotonic(), os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    for process in set(range(2)) - failed.keys():
        os.kill(ranks[process], signal.SIGKILL)
    assert failed.keys() == {0, 1} and all(code for _, code in failed.values())
    assert abs(failed[0][0] - failed[1][0]) < 30
    err = capfd.readouterr().err
    assert 'rank 1 fails' in err
