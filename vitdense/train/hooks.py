"""Hooks of the training run itself: seeds and learning rates of a step, checkpoints, early stopping."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook

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
from vitdense.reporting.history import check_metric, mean_of, metric_names
from vitdense.storage.atomic import try_write_text
from vitdense.train.schedule import Schedule

logger = logging.getLogger('vitdense')


class StepHook(Hook):
    """Make every step a function of (seed, step): random numbers and learning rates depend on nothing else.

    With it a resumed run needs no stored random state, and validations and workers may draw what they like.
    """

    priority = 'VERY_HIGH'

    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.seed = seed
        self.schedule = schedule

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        words = np.random.SeedSequence([self.seed, batch_idx, get_rank()]).generate_state(3)
        torch.manual_seed(int(words[0]))
        np.random.seed(words[1])
        random.seed(int(words[2]))
        for group in runner.optim_wrapper.optimizer.param_groups:
            group['lr'] = group['base_lr'] * self.schedule.ratio(batch_idx, backbone=group.get('backbone', False))
        runner.optim_wrapper.keep_statistics()


class CheckpointHook(Hook):
    """Save every `interval` steps and at the end, keep the newest `keep`, and keep the best weights as `best.pth`.

    New files are written before old ones are deleted; where there is no room for that, older ones are deleted until
    one whole checkpoint is left. A full disk costs a warning: the old files stay, training goes on, and DiskError is
    raised at the end if the last save failed. Weights that are not finite are never saved.

    A step that is saved and validated is saved twice: before the validation, which may fail, and with its scores.
    """

    priority = 'VERY_LOW'

    def __init__(self, *, interval: int, keep: int = 2) -> None:
        self.interval = interval
        self.keep = keep
        self.saved: tuple[int, bool] | None = None  # (step, whether its validation was pending) of the last save
        self.failed: DiskError | None = None

    def before_run(self, runner: Any) -> None:
        if is_main_process():
            delete_temporary_files(runner.folder)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        if runner.history.improved and is_main_process():
            content = runner.state()
            lasting = ('format', 'version', 'config', 'step', 'classes', 'metainfo', 'metrics', 'best')
            weights = ('omitted_weights', 'state_dict')
            if self._write(runner, 'best.pth', {key: content[key] for key in (*lasting, *weights)}) is not None:
                runner.history.best_is_lost(runner)

    def after_load_checkpoint(self, runner: Any, checkpoint: Mapping[str, Any]) -> None:
        if (runner.folder / _name(checkpoint['step'])).exists():
            self.saved = checkpoint['step'], checkpoint['validation_pending']

    def before_validation(self, runner: Any) -> None:
        loop = runner.train_loop
        if loop.iter % self.interval == 0 or loop.iter == loop.max_iters or loop.stop_training:
            self.save(runner)

    def after_step(self, runner: Any) -> None:
        if runner.train_loop.iter % self.interval == 0:
            self.save(runner)

    def after_train(self, runner: Any) -> None:
        self.save(runner)

    def save(self, runner: Any) -> None:
        """Save the run as it stands between two steps, unless it is saved."""
        state = runner.train_loop.iter, runner.train_loop.validation_pending
        if not is_main_process() or state == self.saved:
            return
        name = _name(state[0])
        self.failed = self._write(runner, name, runner.state())
        if self.failed is None:
            self.saved = state
            try_write_text(runner.folder / POINTER, f'{name}\n')
            delete_older(runner.folder, self.keep)

    def rescue(self, runner: Any) -> None:
        """Save the steps since the last save, because the run ends with an error; what fails here is only said."""
        if runner.train_loop.iter == runner.first_step or not is_main_process():
            return
        try:
            self.save(runner)
        except VitDenseError as error:
            logger.warning('the steps since the last checkpoint are lost: %s', error.message)
        else:
            if self.failed is None:
                logger.warning('saved at step %d; --resume goes on', runner.train_loop.iter)

    def _write(self, runner: Any, name: str, content: dict[str, Any]) -> DiskError | None:
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
                write_checkpoint(runner.folder / name, content)
                return None
            except DiskError as error:
                full = isinstance(error, FullDiskError)
                if full and delete_oldest(runner.folder, bytes_of(content)):
                    continue
                why = 'disk full' if full else error.why
                logger.warning('%s: %s: %s; keeping what is there', why, name, error.message)
                return error


def _name(step: int) -> str:
    return f'step_{step:06d}.pth'


class EarlyStoppingHook(Hook):
    """End the run when `monitor` has not improved by more than `min_delta` in `patience` validations in a row.

    `monitor` is a metric, or a list of metrics whose mean counts.
    """

    priority = 'LOW'

    def __init__(
        self,
        monitor: str | Sequence[str],
        *,
        rule: Literal['greater', 'less'] = 'greater',
        patience: int = 5,
        min_delta: float = 0.0,
    ) -> None:
        self.monitor = metric_names(monitor)
        self.sign = 1 if rule == 'greater' else -1
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.waited = 0

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        metrics = runner.history.metrics
        for key in self.monitor:
            check_metric(key, metrics, where='early_stopping.monitor')
        value = mean_of(self.monitor, metrics)
        if value is not None and (self.best is None or self.sign * (value - self.best) > self.min_delta):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            logger.info('%s has not improved in %d validations: stopping', ', '.join(self.monitor), self.waited)
            runner.train_loop.stop_training = True

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint['early_stopping'] = {'best': self.best, 'waited': self.waited}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get('early_stopping', {})
        self.best, self.waited = kept.get('best'), kept.get('waited', 0)
        if self.waited >= self.patience:  # the run was over: nothing but its last files was missing
            runner.train_loop.stop_training = True
