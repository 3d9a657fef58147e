"""Checkpoints of a run: when they are written, how many are kept, and what a full disk means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from vitdense.checkpoints.run import (
    POINTER,
    bytes_of,
    delete_older,
    delete_oldest,
    delete_temporary_files,
    non_finite,
    write_checkpoint,
)
from vitdense.checkpoints.shard_folder import SUFFIX
from vitdense.distributed.agreement import on_all, on_first
from vitdense.distributed.shard_writing import write_sharded
from vitdense.distributed.sharding import gather
from vitdense.errors import DiskError, FullDiskError, NumericsError, VitDenseError
from vitdense.storage.atomic import try_write_text

logger = logging.getLogger('vitdense')
State = Callable[[], dict[str, Any]]  # the content of a checkpoint
BEST = (
    'format',
    'version',
    'config',
    'step',
    'classes',
    'metainfo',
    'metrics',
    'best',
    'operating_points',
    'omitted_weights',
    'state_dict',
)


class Saving:
    """Writes a checkpoint every `interval` steps and at the end, keeps the newest `keep`, and the best as `best.pth`.

    New files are written before old ones are deleted; where there is no room for that, older ones are deleted until
    one whole checkpoint is left. A full disk costs a warning: the old files stay, training goes on, and `failed` is the
    error of the last save. Weights that are not finite are never saved.

    A step that is saved and validated is saved twice: before the validation, which may fail, and with its scores.

    The first process writes; of a `sharded` run all write together, and `state` and the methods that save are called by
    all. Its best weights are gathered: `best.pth` is an ordinary file.
    """

    def __init__(self, folder: Path, *, interval: int, keep: int = 2, sharded: bool = False) -> None:
        self.folder = folder
        self.interval = interval
        self.keep = keep
        self.sharded = sharded
        self._shards: tuple[int, dict[str, str]] | None = None  # of the last save: its step, the sums of its files
        self.saved: tuple[int, bool] | None = None  # (step, whether its validation was pending) of the last save
        self.failed: DiskError | None = None

    def begin(self) -> None:
        """Delete what interrupted writes have left."""
        if is_main_process():
            delete_temporary_files(self.folder)

    def save(self, step: int, pending: bool, state: State) -> None:
        """Save the run as it stands after `step` steps, unless it is saved. Raises NumericsError."""
        if not (self.sharded or is_main_process()) or (step, pending) == self.saved:
            return
        name = checkpoint_name(step, self.sharded)
        self.failed = self._write(
            name, state(), partial(self._write_shards, step) if self.sharded else write_checkpoint
        )
        if self.failed is None:
            self.saved = step, pending
            if is_main_process():
                try_write_text(self.folder / POINTER, f'{name}\n')
                delete_older(self.folder, self.keep)

    def save_best(self, state: State) -> bool:
        """Save the weights as `best.pth`; return False where the disk refuses. Raises NumericsError."""
        if not (self.sharded or is_main_process()):
            return True
        content = best_content(state())
        if self.sharded:
            content = gather(content)
        return self._write('best.pth', content, self._write_first if self.sharded else write_checkpoint) is None

    def rescue(self, step: int, pending: bool, state: State) -> None:
        """Save the steps since the last save, because the run ends with an error; what fails here is only logged.

        The shards of a run cannot be saved: its other processes did not fail.
        """
        if self.sharded or not is_main_process():
            return
        try:
            self.save(step, pending, state)
        except VitDenseError as error:
            logger.warning('the steps since the last checkpoint are lost: %s', error.message)
        else:
            if self.failed is None:
                logger.warning('saved at step %d; --resume goes on', step)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Mark the step of the checkpoint as saved, where it is one of this folder."""
        if on_first((self.folder / checkpoint_name(checkpoint['step'], self.sharded)).exists):
            self.saved = checkpoint['step'], checkpoint['validation_pending']

    def _write(self, name: str, content: dict[str, Any], write: Callable[[Path, Any], Any]) -> DiskError | None:
        """Write a checkpoint; return the error where the disk refuses."""
        broken = non_finite(content['state_dict'])
        if self.sharded:
            broken = sorted({name for names in on_all(lambda: broken) for name in names})
        if broken:
            raise NumericsError(
                f'{len(broken)} tensors of the model are not finite',
                where=', '.join(broken[:3]),
                why='the weights overflowed; nothing was saved, and the checkpoints on disk are those from before',
                fix='lower the learning rate, clip gradients (optim_wrapper.clip_grad) or use --amp off, then --resume',
            )
        while True:
            try:
                write(self.folder / name, content)
                return None
            except DiskError as error:
                full = isinstance(error, FullDiskError)
                if full and self._free_space(bytes_of(content)):
                    continue
                why = 'disk full' if full else error.why
                logger.warning('%s: %s: %s; keeping what is there', why, name, error.message)
                return error

    def _write_shards(self, step: int, path: Path, content: dict[str, Any]) -> None:
        """Write the folder of a sharded run; what a step has on the disk already is not written again."""
        written = self._shards[1] if self._shards is not None and self._shards[0] == step else None
        self._shards = None
        self._shards = step, write_sharded(path, content, shards=written)

    def _write_first(self, path: Path, content: dict[str, Any]) -> None:
        on_first(partial(write_checkpoint, path, content))

    def _free_space(self, size: int) -> bool:
        delete = partial(delete_oldest, self.folder, size)
        return on_first(delete) if self.sharded else delete()


def best_content(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint of weights alone has of one of a run."""
    return {key: content[key] for key in BEST}


def checkpoint_name(step: int, sharded: bool = False) -> str:
    return f'step_{step:06d}{SUFFIX if sharded else ".pth"}'
