"""Whole training runs in processes of their own, which are killed at file operations or instants, and resumed."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.conftest import CONFIG
from tests.train.test_joint import CONFIG as JOINT
from tests.train.test_resume import equal
from vitdense.checkpoints.run import find_checkpoint, read_checkpoint
from vitdense.commands.parser import run
from vitdense.commands.train import train
from vitdense.config.load import load_config
from vitdense.loading import loaders
from vitdense.reporting.history import read_rows

KILLS = int(os.environ.get('VITDENSE_KILLS', 5))  # of each kind; 0: at every file operation
OPTIONS = ('schedule.max_iters=6', 'schedule.val_interval=3', 'checkpoint.interval=2', 'train_dataloader.batch_size=2')
MIXED = '+train_dataloader.dataset.batches=mixed'
CASES = {  # tasks, workers -> the config and its options
    'semantic-0': (CONFIG, ()),
    'semantic-1': (CONFIG, ('train_dataloader.num_workers=1', 'val_dataloader.num_workers=1')),
    'semantic-4': (CONFIG, ('train_dataloader.num_workers=4',)),
    'three tasks-0': (JOINT, (MIXED,)),
    'three tasks-1': (JOINT, (MIXED, 'train_dataloader.num_workers=1')),
    'three tasks-4': (JOINT, (MIXED, 'train_dataloader.num_workers=4')),
}
OPERATIONS = ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.truncate', 'fsync')


class Run(NamedTuple):
    """A run of one of the cases, in `folder`."""

    config: Path
    options: tuple[str, ...]
    folder: Path

    def train(self, resume: str | None = None) -> None:
        sys.argv = ['train.py']
        torch.set_num_threads(1)
        loaders.cpu_count = lambda: 4  # else there are as many workers as processors
        train(load_config(self.config, self.options), work_dir=self.folder, resume=resume, device='cpu')

    def differs(self, other: Run) -> str:
        """Return what is not equal to the bit at the end of two runs, '' for nothing."""
        ours, theirs = (read_checkpoint(find_checkpoint(run.folder)) for run in (self, other))
        if ours['step'] != theirs['step']:
            return f'steps {ours["step"]}, {theirs["step"]}'
        keys = [key for key in theirs if key not in ours or not equal(ours[key], theirs[key])]
        if keys:
            return ', '.join(keys)
        for name in ('model/model.safetensors', 'model/model.json'):
            if (self.folder / name).read_bytes() != (other.folder / name).read_bytes():
                return name
        return '' if self.numbers() == other.numbers() else 'metrics.csv'

    def numbers(self) -> list[dict[str, Any]]:
        """Return the rows of the log without times."""
        rows = read_rows(self.folder / 'metrics.csv')
        return [{key: row[key] for key in row if 'loss' in key or key in ('step', 'lr')} for row in rows]


def make_run(case: str, folder: Path, name: str) -> Run:
    text, options = CASES[case]
    config = folder / f'{case.replace(" ", "_")}.py'
    config.write_text(text + ('' if 'ema' in text else '\nema = dict(momentum=0.1)\n'))
    return Run(config, (*OPTIONS, *options), folder / name)


def in_process(function: Callable[[], Any]) -> int:
    """Start `function` in a process of its own and return its id."""
    child = os.fork()
    if not child:
        code = 1
        try:
            function()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def as_tool(function: Callable[[], Any]) -> Callable[[], None]:
    """Return `function` with the error block and the exit code of a tool."""
    return lambda: run(lambda _: function())


def ended(child: int) -> int:
    """Wait for a process; return its exit code, -9 when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def traced(folder: Path, function: Callable[[], Any], *, kill_at: int = 0) -> tuple[int, list[str]]:
    """Run `function` in a process that is killed before file operation number `kill_at` (from 1) below `folder`.

    Operations are: opening for writing, renaming, deleting, making folders, truncating, and syncing to disk. Returns
    the exit code and the operations until then.
    """
    read_end, write_end = os.pipe()

    def tracing() -> None:
        number, parent, fsync = 0, os.getpid(), os.fsync

        def look(event: str, arguments: tuple) -> None:
            nonlocal number
            write = event == 'open' and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if not write and event not in OPERATIONS or os.getpid() != parent:
                return
            path = str(arguments[0])
            if event not in ('fsync', 'os.remove', 'os.rmdir') and not path.startswith(str(folder)):
                return
            number += 1
            os.write(write_end, f'{event} {Path(path).name}\n'.encode())
            if number == kill_at:
                os.kill(parent, signal.SIGKILL)

        os.fsync = lambda handle: (sys.audit('fsync', handle), fsync(handle))
        sys.addaudithook(look)
        function()

    child = in_process(tracing)
    os.close(write_end)
    with os.fdopen(read_end, errors='replace') as lines:
        operations = lines.read().splitlines()
    return ended(child), operations


def killed_after(seconds: float, function: Callable[[], Any]) -> int:
    """Run `function` in a process that is killed after some time; return its exit code, -9 when it was killed."""
    child = in_process(function)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return ended(child)
