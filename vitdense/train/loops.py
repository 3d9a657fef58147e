"""The loops of a run: training with validations at intervals and at the end, and evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from mmengine.dist import all_gather_object
from mmengine.evaluator import Evaluator
from mmengine.runner import BaseLoop
from torch import nn
from torch.utils.data import DataLoader

from vitdense.errors import DataError
from vitdense.train.preemption import Interrupted
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
        try:
            self._train()
        except Interrupted:
            runner.call_hook('interrupted')  # saves and leaves
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _train(self) -> None:
        if self.validation_pending:
            self._validate()
        batches = iter(self.dataloader)
        while self._iter < self.max_iters and not self.stop_training:
            self._step(self._next(batches))
            if self._iter % self.val_interval == 0 or self._iter == self.max_iters or self.stop_training:
                self._validate()
            self.runner.call_hook('after_step')

    def _next(self, batches: Iterator[Batch]) -> Batch:
        start = time.perf_counter()
        with self._saved_on_failure():
            batch = next(batches)
        self.waited += time.perf_counter() - start
        return batch

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Save the steps that are done when data or a validation fails, and let the error end the run."""
        try:
            yield
        except Exception:
            self.runner.saving.rescue(self.runner)
            raise

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
        self.runner.call_hook('before_validation')  # saves; a stop asked for during the step is obeyed here
        with self._saved_on_failure():
            self.runner.val_loop.run()
        self.validation_pending = False


class EvaluationLoop(BaseLoop):
    """Predict every batch of a loader, show it to the metrics, and return their scores.

    Hooks see the names of mmengine's loops, with `mode` 'val' or 'test'. A batch is None where none of its images could
    be read (`--skip-bad-eval`). Beside mmengine's hook points, `after_val_batch` is called after every batch, also
    then. The number of images without a prediction is `skipped_images` among the scores. Raises DataError when there
    is no other image.
    """

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, mode: Literal['val', 'test']) -> None:
        super().__init__(runner, dataloader)
        self.mode = mode
        self.evaluator = evaluator if isinstance(evaluator, Evaluator) else runner.build_evaluator(evaluator)
        self.evaluator.dataset_meta = dataloader.dataset.metainfo
        runner.visualizer.dataset_meta = dataloader.dataset.metainfo

    def run(self) -> dict[str, Any]:
        """Evaluate and return the scores."""
        runner, mode = self.runner, self.mode
        runner.call_hook(f'before_{mode}')
        runner.call_hook(f'before_{mode}_epoch')
        runner.model.eval()
        for row, batch in enumerate(self.dataloader):
            if batch is not None:
                self._predict(row, batch)
            runner.call_hook(f'after_{mode}_batch', batch_idx=row)
        skipped, total = self._count_skipped(), len(self.dataloader.dataset)
        metrics = self.evaluator.evaluate(total)
        if skipped:
            metrics['skipped_images'] = skipped
        runner.call_hook(f'after_{mode}_epoch', metrics=metrics)
        runner.call_hook(f'after_{mode}')
        return metrics

    @torch.no_grad()
    def _predict(self, row: int, batch: Batch) -> None:
        runner = self.runner
        runner.call_hook(f'before_{self.mode}_iter', batch_idx=row, data_batch=batch)
        outputs = getattr(runner.model, f'{self.mode}_step')(batch)
        self.evaluator.process(data_samples=outputs, data_batch=batch)
        runner.call_hook(f'after_{self.mode}_iter', batch_idx=row, data_batch=batch, outputs=outputs)

    def _count_skipped(self) -> int:
        """Return how many images were skipped, by all ranks."""
        skipped, total = sum(all_gather_object(self.dataloader.dataset.num_bad)), len(self.dataloader.dataset)
        if skipped and skipped == total:
            raise DataError(
                'no image can be evaluated',
                where=f'{self.mode}_dataloader.dataset',
                why=f'all {total} images are unreadable and were skipped',
                fix='see the warnings above for the files, and repair them',
            )
        return skipped
