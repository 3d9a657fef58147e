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

from vitdense.engine.checkpoints import (
    POINTER,
    delete_older,
    non_finite,
    sweep,
    write_checkpoint,
    write_text,
)
from vitdense.engine.history import check_metric, mean_of, metric_names
from vitdense.engine.schedule import Schedule
from vitdense.errors import DiskError, NumericsError

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

    New files are written before old ones are deleted. A full disk costs a warning: the old files stay, training goes
    on, and DiskError is raised at the end if the last save failed. Weights that are not finite are never saved.
    """

    priority = 'VERY_LOW'

    def __init__(self, *, interval: int, keep: int = 2) -> None:
        self.interval = interval
        self.keep = keep
        self.saved_step: int | None = None
        self.failed: DiskError | None = None

    def before_run(self, runner: Any) -> None:
        if is_main_process():
            sweep(runner.folder)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        if runner.history.improved and is_main_process():
            content = runner.state()
            lasting = ('format', 'version', 'config', 'step', 'classes', 'metainfo', 'metrics', 'best')
            weights = ('borrowed', 'state_dict')
            self._write(runner, 'best.pth', {key: content[key] for key in (*lasting, *weights)})

    def after_step(self, runner: Any) -> None:
        if runner.train_loop.iter % self.interval == 0:
            self.save(runner)

    def after_train(self, runner: Any) -> None:
        if self.saved_step != runner.train_loop.iter:
            self.save(runner)

    def save(self, runner: Any) -> None:
        """Save the run as it stands between two steps."""
        if not is_main_process():
            return
        step = runner.train_loop.iter
        if self._write(runner, f'step_{step:06d}.pth', runner.state()):
            self.saved_step = step
            write_text(runner.folder / POINTER, f'step_{step:06d}.pth\n')
            delete_older(runner.folder, self.keep)

    def _write(self, runner: Any, name: str, content: dict[str, Any]) -> bool:
        broken = non_finite(content['state_dict'])
        if broken:
            raise NumericsError(
                f'{len(broken)} tensors of the model are not finite',
                where=', '.join(broken[:3]),
                why='the weights overflowed; nothing was saved, and the checkpoints on disk are those from before',
                fix='lower the learning rate, clip gradients (optim_wrapper.clip_grad) or use --amp off, then --resume',
            )
        try:
            write_checkpoint(runner.folder / name, content)
        except DiskError as error:
            self.failed = error
            logger.warning('disk full: %s; keeping what is there', error.message)
            return False
        self.failed = None
        return True


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
