"""The training loop: every step from its seed to its checkpoint, and the validations between them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from mmengine.runner import BaseLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vitdense.checkpoints.omitted_weights import describe_omitted
from vitdense.distributed.sharding import gathered, share_statistics
from vitdense.errors import NumericsError
from vitdense.loading.loaders import close_loaders
from vitdense.metrics.base import operating_points_of
from vitdense.replay.files import record_step
from vitdense.replay.non_finite import StepInputs
from vitdense.reporting.history import History
from vitdense.reporting.progress import ProgressDisplay
from vitdense.reporting.run_images import RunImages
from vitdense.reporting.trackers import Trackers
from vitdense.train.early_stopping import EarlyStopping
from vitdense.train.ema import Ema
from vitdense.train.preemption import Interrupted, StopRequest, fewest_batches, interruptible, leave, obey_signals
from vitdense.train.pseudo_labels import PseudoLabels
from vitdense.train.saving import Saving
from vitdense.train.schedule import Schedule
from vitdense.train.seeding import seed_step
from vitdense.train.state import restore_run, run_state
from vitdense.types import Batch


class TrainingLoop(BaseLoop):
    """Trains a model for `schedule.max_iters` steps; `_train` is the loop itself.

    Its parts are: `history` (rows of numbers), `progress`, `trackers`, `saving`, and, None where the
    config has none, `images`, `ema`, `early_stopping` and `pseudo_labels`. mmengine's hook points lie around the steps
    and validations, for `custom_hooks` and mmengine's own hooks; `iter` is the step that is under way, from 0, or how
    many are done.

    A validation that a stop cuts off is `validation_pending`; it comes first when the run is resumed.
    """

    max_epochs = 1  # hooks of mmengine read it
    val_begin = 1

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader,
        *,
        seed: int,
        schedule: Schedule,
        history: History,
        saving: Saving,
        trackers: Trackers,
        images: RunImages | None = None,
        ema: Mapping[str, Any] | None = None,
        early_stopping: EarlyStopping | None = None,
        pseudo_labels: PseudoLabels | None = None,
    ) -> None:
        super().__init__(runner, dataloader)
        self.seed = seed
        self.schedule = schedule
        self.max_iters, self.val_interval = schedule.max_iters, schedule.val_interval
        self.history = history
        self.progress = ProgressDisplay(self.max_iters)
        self.trackers = trackers
        self.images = images
        self.ema = Ema(runner.network_model, **ema) if ema else None
        self.saving = saving
        self.early_stopping = early_stopping
        self.pseudo_labels = pseudo_labels
        self.requests = StopRequest()
        self.stop_training = False  # hooks may set it to end the run
        self.operating_points: dict[str, Any] = {}  # score thresholds of the best validation, by head
        self.validation_pending = False
        self.first_step = 0  # of this process
        self.samples_before = 0  # samples that all ranks had seen by then
        self.epoch = 0
        self.iter = 0
        self.batches: list[tuple[int, Batch]] = []  # (step, batch) since the last update
        self._save_due = False

    def run(self) -> nn.Module:
        """Train to the end and return the model. Raises DiskError where the last checkpoint could not be written."""
        runner = self.runner
        with obey_signals() as self.requests:
            try:
                runner.call_hook('before_train')
                runner.call_hook('before_train_epoch')
                self._begin()
                self._train()
                runner.call_hook('after_train_epoch')
                runner.call_hook('after_train')
                self._end()
            except Interrupted:  # by a signal, while it waited for data
                self._obey_requests()
            except NumericsError as error:
                record_step(self, error)
                raise
            finally:
                self.progress.close()
                self.trackers.close()
                close_loaders()
        if self.saving.failed is not None:
            raise self.saving.failed
        return runner.model

    def _train(self) -> None:
        """Train from step `iter` to the last one."""
        runner, wrapper = self.runner, self.runner.optim_wrapper
        if self.validation_pending:  # of the run that is resumed
            self._validate()
        batches = interruptible(self.dataloader)
        while self.iter < self.max_iters and not self.stop_training:
            batch, waited = self._next(batches)  # samples have seeds of their own
            self.batches.append((self.iter, batch))
            seed_step(self.seed, self.iter, runner.rank)
            lr = wrapper.set_learning_rates(self.schedule, self.iter)
            runner.model.train()
            runner.call_hook('before_train_iter', batch_idx=self.iter, data_batch=batch)

            wrapper.keep_statistics()
            loss, losses = self._forward(batch)
            wrapper.backward(wrapper.scale_loss(loss))
            grad_norm = None
            if wrapper.should_update():  # else gradients are accumulated
                grad_norm = wrapper.clip_gradients()
                wrapper.step_if_finite(grad_norm)  # counts the steps that it skips
                wrapper.zero_grad()
                self.batches.clear()
                if self.ema is not None:
                    self.ema.update()
            runner.call_hook('after_train_iter', batch_idx=self.iter, data_batch=batch, outputs=losses)

            self.iter += 1
            last = self.iter == self.max_iters
            row = self.history.add_step(self.iter, losses, lr=lr, grad_norm=grad_norm, waited=waited, last=last)
            self.trackers.log(row)
            self.progress.step(self.iter, row)

            if self.iter % self.val_interval == 0 or last or self.stop_training:
                self._validate()
            self._save_due |= self.iter % self.saving.interval == 0
            if self._save_due and not wrapper.skipped_in_row:  # else the run may be about to end: older steps are kept
                self.save()
                self._save_due = False
            self._obey_requests()

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses of a batch, and all losses by name."""
        runner = self.runner
        with runner.optim_wrapper.optim_context(runner.model):  # ranks exchange gradients where an update follows
            losses = runner.model(*self._inputs(batch), mode='loss')
        return runner.network_model.parse_losses(losses)

    def _inputs(self, batch: Batch) -> StepInputs:
        """Return a batch as the model takes it: augmented, normalised and with pseudo labels."""
        inputs = StepInputs(*self.runner.network_model.data_preprocessor(batch, True))
        return inputs if self.pseudo_labels is None else inputs._replace(targets=self.pseudo_labels(*inputs))

    def _validate(self) -> None:
        """Validate the averaged weights, keep the best ones, and end the run where `early_stopping` does."""
        runner, loop = self.runner, self.runner.val_loop
        if loop is None:
            return
        self.validation_pending = True
        due = self._save_due or self.iter % self.saving.interval == 0
        if (due or self.iter == self.max_iters or self.stop_training) and not runner.optim_wrapper.skipped_in_row:
            self.save()  # a validation may fail
        self._obey_requests()
        start = time.perf_counter()
        with self._saved_on_failure():
            runner.call_hook('before_val')
            if self.ema is not None:
                self.ema.apply()
            runner.call_hook('before_val_epoch')
            share_statistics(runner.network_model)
            with gathered(runner.network_model):  # ranks may have differently many batches and windows
                self._predict(loop)
            metrics = loop.scores()
            if self.ema is not None:
                self.ema.remove()
            runner.call_hook('after_val_epoch', metrics=metrics)

            seconds = time.perf_counter() - start
            row, improved = self.history.add_validation(self.iter, metrics, seconds=seconds)
            self.trackers.log(row)
            evaluators, size = loop.evaluator.metrics, len(loop.dataloader.dataset)
            self.progress.validated(self.iter, self.history.metrics, evaluators, images=size, seconds=seconds)
            if self.images is not None:
                self.images.write_validation(evaluators, self.history.rows)
            if self.early_stopping is not None and self.early_stopping.is_over(self.history.metrics):
                self.stop_training = True
            if improved or not self.history.best:
                self.operating_points = operating_points_of(evaluators)
            if improved and not self.saving.save_best(self.state):
                self.history.restore_best()
            self._write_json()
            runner.call_hook('after_val')
        self.validation_pending = False

    def _predict(self, loop: Any) -> None:
        """Predict all batches of a validation; a stop that is requested meanwhile leaves it."""
        number, fewest = len(loop.dataloader), fewest_batches(len(loop.dataloader), self.runner.device)
        if self.images is not None:
            self.images.begin_validation()
        self.progress.validation()
        for row, batch, predictions in loop.predictions():
            if batch is not None and self.images is not None:
                self.images.add(batch, predictions, row, number)
            self.progress.validation(f'{row + 1}/{number}')
            if row < fewest:  # ranks read requests together
                self._obey_requests()

    def _begin(self) -> None:
        self.saving.begin()
        self.history.begin()
        self.progress.begin(self.iter)
        self.trackers.begin(self.runner.experiment_name)
        if self.images is not None and self.iter == 0:
            self.images.write_labels(self.dataloader)

    def _end(self) -> None:
        self._write_json()
        if self.images is not None:
            self.images.write_curves(self.history.rows)
        self.save()

    def _next(self, batches: Iterator[Batch]) -> tuple[Batch, float]:
        """Return the next batch, and the seconds that it took to come."""
        start = time.perf_counter()
        with self._saved_on_failure():
            batch = next(batches)
        return batch, time.perf_counter() - start

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Save the steps that are done when data or a validation fails; the error ends the run."""
        try:
            yield
        except Exception:
            if self.iter > self.first_step:
                self.saving.rescue(self.iter, self.validation_pending, self.state)
            raise

    def seeded_inputs(self, step: int, batch: Batch) -> StepInputs:
        """Return the inputs of a step as they are made in it, for a replay file."""
        seed_step(self.seed, step, self.runner.rank)
        return self._inputs(batch)

    def _obey_requests(self) -> None:
        """Save, and leave, where a signal to some rank requests it."""
        number, save = self.requests.read(self.runner.device)
        if number or save:
            self.save()
        if number:
            leave(number, self.iter)

    def _write_json(self) -> None:
        bad_images = self.dataloader.dataset.num_bad
        self.history.write_json(self.iter, skipped_steps=self.runner.optim_wrapper.skipped_steps, bad_images=bad_images)

    @cached_property
    def omitted(self) -> dict[str, list[float]]:
        """Tensors of the model that checkpoints leave out (see `vitdense.checkpoints.omitted_weights`)."""
        return describe_omitted(self.runner.network_model)

    def save(self) -> None:
        """Save the run as it stands between two steps, unless it is saved."""
        self.saving.save(self.iter, self.validation_pending, self.state)

    def state(self) -> dict[str, Any]:
        """Return the run between two steps, as a checkpoint holds it (see `vitdense.checkpoints.run`)."""
        return run_state(self)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from the content of a checkpoint."""
        restore_run(self, checkpoint)
