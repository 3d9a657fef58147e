"""The work directory of a run: a lock for one run at a time, and files of earlier runs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process

from vitdense.checkpoints.run import read_best, steps_after, steps_in
from vitdense.errors import ConfigError, DiskError, VitDenseError
from vitdense.storage.atomic import disk_problem

logger = logging.getLogger('vitdense')
LOCK = '.lock'
ENCODER = 'encoder.safetensors'
LEFTOVERS = (
    'step_*.pth*',
    'step_*.shards*',
    'best.pth*',
    'last_checkpoint',
    'log.txt',
    'config.py',
    '*.jpg',
    'curves.png',
    'confusion*.*',
    'sample.png',
    ENCODER,
    'model',
    'heads',
    'tensorboard',
    'metrics.*',  # last: as long as it is there, a move that was cut off is taken up again
)  # what a run leaves in its work directory

_held: set[Path] = set()  # folders that this process has locked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` while the block runs; the processes of one distributed run share the lock.

    The lock belongs to the first process and ends with it, however it ends. Raises ConfigError, in all processes, when
    another run works in the folder, DiskError when nothing can be written there.
    """
    error: list[VitDenseError | None] = [None]
    held = None
    if is_main_process():
        try:
            held = _lock(folder.resolve())
        except VitDenseError as caught:
            error = [caught]
    broadcast_object_list(error)
    if error[0] is not None:
        raise error[0]
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()  # while it is locked; whoever opened it already looks again
            _held.discard(folder.resolve())
            os.close(held)


def _lock(folder: Path) -> int | None:
    """Return the open file that locks `folder`; None, with a warning, where that is impossible.

    A record lock: unlike one of `flock`, loader workers do not inherit it, and network file systems know it.
    """
    if folder in _held:  # a second lock of one process would succeed
        raise _occupied(folder, 'this process')
    path = folder / LOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR):
            raise DiskError(
                'the work directory cannot be written to',
                where=str(path),
                why=error.strerror or str(error),
                fix='choose a folder you may write to with --work-dir',
            ) from error
        return _unlocked(folder, error)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(file, 200).decode(errors='replace').strip()
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _occupied(folder, owner or 'another process') from None
        return _unlocked(folder, error)
    if not path.exists() or path.stat().st_ino != os.fstat(file).st_ino:  # its owner ended, and deleted it
        os.close(file)
        return _lock(folder)
    with suppress(OSError):  # only for the message above
        os.truncate(file, 0)
        os.write(file, f'process {os.getpid()} on {socket.gethostname()} since {time.ctime()}\n'.encode())
    _held.add(folder)
    return file


def _unlocked(folder: Path, error: OSError) -> None:
    logger.warning('%s cannot be locked (%s): nothing keeps a second run out of it', folder, disk_problem(error))


def _occupied(folder: Path, owner: str) -> ConfigError:
    return ConfigError(
        'another run works in this folder',
        where=str(folder),
        why=f'it is locked by {owner}; two runs would mix their files',
        fix='give this run a folder of its own with --work-dir, or stop the other one first (kill -TERM saves it)',
    )


def refuse_files_in_the_way(folder: Path) -> None:
    """Raise DiskError when files stand where a run writes folders, before it has trained for nothing."""
    for name in ('model', 'heads', 'tensorboard'):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise DiskError(
                f"'{name}' in the work directory is a file",
                where=str(folder / name),
                why='a run writes a folder of that name',
                fix='move the file away, or choose another --work-dir',
            )


def move_aside(folder: Path) -> Path | None:
    """Move what an earlier run left in `folder` to `earlier-N/` in it, and return that; None if nothing was there."""
    if not steps_in(folder) and not (folder / 'metrics.csv').exists():
        return None
    return _move(folder, [path for pattern in LEFTOVERS for path in sorted(folder.glob(pattern))])


def move_later(folder: Path, step: int) -> Path | None:
    """Move checkpoints later than `step`, at which a run goes on, to `earlier-N/`; return that, if there are any.

    They are damaged, or of steps that are done again. Left in place they would be taken for the newest, and the new
    ones deleted.
    """
    later = [file for path in steps_after(folder, step) for file in sorted(folder.glob(f'{path.name}*'))]
    if not later:
        return None
    best = read_best(folder)
    if best is None or best['step'] > step:
        later += sorted(folder.glob('best.pth*'))
    return _move(folder, later)


def copy_history(source: Path, folder: Path, step: int) -> None:
    """Copy the metrics and the best weights up to `step` of the run in `source`, which goes on in `folder`."""
    best = read_best(source)
    names = ['metrics.csv', *(['best.pth.sha256', 'best.pth'] if best and best['step'] <= step else [])]
    try:
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    except OSError as error:
        (folder / 'best.pth').unlink(missing_ok=True)
        logger.warning('%s: the history of %s is not copied; going on', disk_problem(error), source)


def _move(folder: Path, paths: Sequence[Path]) -> Path:
    number = 1
    while (folder / f'earlier-{number}').exists():
        number += 1
    destination = folder / f'earlier-{number}'
    try:
        destination.mkdir()
        for path in paths:
            shutil.move(path, destination / path.name)
    except OSError as error:
        raise DiskError(
            'the files of an earlier run cannot be moved away',
            where=str(destination),
            why=str(error),
            fix='move them yourself, or choose another --work-dir',
        ) from error
    return destination
