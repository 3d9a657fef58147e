"""Checkpoints of a run: when they are written, how many are kept, and what a full disk means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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
    """

    def __init__(self, folder: Path, *, interval: int, keep: int = 2) -> None:
        self.folder = folder
        self.interval = interval
        self.keep = keep
        self.saved: tuple[int, bool] | None = None  # (step, whether its validation was pending) of the last save
        self.failed: DiskError | None = None

    def begin(self) -> None:
        """Delete what interrupted writes have left."""
        if is_main_process():
            delete_temporary_files(self.folder)

    def save(self, step: int, pending: bool, state: State) -> None:
        """Save the run as it stands after `step` steps, unless it is saved. Raises NumericsError."""
        if not is_main_process() or (step, pending) == self.saved:
            return
        name = checkpoint_name(step)
        self.failed = self._write(name, state())
        if self.failed is None:
            self.saved = step, pending
            try_write_text(self.folder / POINTER, f'{name}\n')
            delete_older(self.folder, self.keep)

    def save_best(self, state: State) -> bool:
        """Save the weights as `best.pth`; return False where the disk refuses. Raises NumericsError."""
        if not is_main_process():
            return True
        content = state()
        return self._write('best.pth', {key: content[key] for key in BEST}) is None

    def rescue(self, step: int, pending: bool, state: State) -> None:
        """Save the steps since the last save, because the run ends with an error; what fails here is only logged."""
        if not is_main_process():
            return
        try:
            self.save(step, pending, state)
        except VitDenseError as error:
            logger.warning('the steps since the last checkpoint are lost: %s', error.message)
        else:
            if self.failed is None:
                logger.warning('saved at step %d; --resume goes on', step)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Remember that the checkpoint is saved, where it is one of this folder."""
        if (self.folder / checkpoint_name(checkpoint['step'])).exists():
            self.saved = checkpoint['step'], checkpoint['validation_pending']

    def _write(self, name: str, content: dict[str, Any]) -> DiskError | None:
        """Write a checkpoint; return the error where the disk refuses."""
        broken = non_finite(content['state_dict'])
        if broken:
            raise NumericsError(
                f'{len(broken)} tensors of the model are not finite',
                where=', '.join(broken[:3]),
                why='the weights overflowed; nothing was saved, and the checkpoints on disk are those from before',
                fix='lower the learning rate, clip gradients (optim_wrapper.clip_grad) or use --amp off, then --resume',
            )
        while True:
            try:
                write_checkpoint(self.folder / name, content)
                return None
            except DiskError as error:
                full = isinstance(error, FullDiskError)
                if full and delete_oldest(self.folder, bytes_of(content)):
                    continue
                why = 'disk full' if full else error.why
                logger.warning('%s: %s: %s; keeping what is there', why, name, error.message)
                return error


def checkpoint_name(step: int) -> str:
    return f'step_{step:06d}.pth'
