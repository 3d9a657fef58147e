"""The training loop: endless batches, validation at intervals and at the end, and the time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mmengine.runner import BaseLoop
from torch import nn
from torch.utils.data import DataLoader

from vitdense.types import Batch


class IterationLoop(BaseLoop):
    """Run `max_iters` steps; hooks see mmengine's names (`iter` is the step at hand, from 0).

    Beside mmengine's hook points, `after_step` is called when a step and the validation that belongs to it are done:
    what is saved there needs no validation again. A validation that a stop cut off is `validation_pending`; it is run
    first when the run is resumed.
    """

    def __init__(self, runner: Any, dataloader: DataLoader, max_iters: int, val_interval: int) -> None:
        super().__init__(runner, dataloader)
        self.max_iters = max_iters
        self.max_epochs = 1  # hooks of mmengine ask for it
        self.val_interval = val_interval
        self.val_begin = 1
        self.stop_training = False  # hooks set it to end the run
        self.validation_pending = False
        self.waited = 0.0  # seconds in which this process waited for batches
        self._iter = 0
        self._epoch = 0

    @property
    def iter(self) -> int:
        """The number of the step at hand, from 0; between steps, how many are done."""
        return self._iter

    @property
    def epoch(self) -> int:
        return self._epoch

    def run(self) -> nn.Module:
        """Train to the end and return the model."""
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        if self.validation_pending:
            self._validate()
        batches = iter(self.dataloader)
        while self._iter < self.max_iters and not self.stop_training:
            self._step(self._next(batches))
            if self._iter % self.val_interval == 0 or self._iter == self.max_iters or self.stop_training:
                self._validate()
            runner.call_hook('after_step')
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _next(self, batches: Iterator[Batch]) -> Batch:
        start = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - start
        return batch

    def _step(self, batch: Batch) -> None:
        runner = self.runner
        runner.model.train()
        runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=batch)
        outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        runner.call_hook('after_train_iter', batch_idx=self._iter, data_batch=batch, outputs=outputs)
        self._iter += 1

    def _validate(self) -> None:
        if self.runner.val_loop is None:
            return
        self.validation_pending = True
        self.runner.call_hook('before_validation')  # the step is done: a stop asked for during it is obeyed here
        self.runner.val_loop.run()
        self.validation_pending = False
