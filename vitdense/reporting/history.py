"""The numbers of a run: averaged losses, validation metrics, the best of them; `metrics.csv` and `metrics.json`."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch import Tensor

from vitdense.checkpoints.run import read_best
from vitdense.errors import ConfigError, did_you_mean
from vitdense.protocols import ScoreNames
from vitdense.storage.atomic import disk_problem, finite, json_text, try_write_text

logger = logging.getLogger('vitdense')
Row = dict[str, float | int | None]


class HistoryHook(Hook):
    """Keep one row for every `interval` steps and one for every validation.

    Losses are averaged over the interval on the device, and read once per interval; those of a task that some batches
    have no label for (`TASK.labelled` is 0) over the others. Values that are not finite become
    None: empty in the csv file, null in the json file. `best` is the name of the metric by which validations are
    compared, or a list of names whose mean is, and `rule` says whether more is better; then `improved` is True from a
    better validation to the next one.

    Neither file is worth a run: where the disk refuses one, that is said and the next write makes up for it.
    """

    priority = 'BELOW_NORMAL'

    def __init__(
        self,
        work_dir: Path,
        *,
        interval: int,
        best: str | Sequence[str] | None,
        rule: Literal['greater', 'less'] = 'greater',
    ) -> None:
        self.work_dir = work_dir
        self.interval = interval
        self.best_keys = metric_names(best)
        self.sign = 1 if rule == 'greater' else -1
        self.rows: list[Row] = []
        self.metrics: Row = {}
        self.best: Row = {}
        self.improved = False
        self._best_before: Row = {}
        self._csv_whole = True  # metrics.csv holds all rows
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._counts: dict[str, Tensor | int] = {}  # by key: the steps that count for it
        self._columns: list[str] = []
        self._notes: Row = {}
        self._since = (0.0, 0.0)  # (clock, seconds waited) at the last row

    def before_train(self, runner: Any) -> None:
        self._since = (time.perf_counter(), runner.train_loop.waited)
        if is_main_process():
            self._rewrite()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for key, value in (outputs or {}).items():
            seen = _seen(key, outputs)
            self._sums[key] = self._sums.get(key, 0) + value.detach() * seen
            self._counts[key] = self._counts.get(key, 0) + seen
        self._count += 1
        if (batch_idx + 1) % self.interval == 0 or batch_idx + 1 == runner.max_iters:
            self._add(self._training_row(runner, batch_idx + 1))

    def note(self, values: Row) -> None:
        """Write `values` into the next row of training, beside the averages."""
        self._notes |= values

    def _training_row(self, runner: Any, step: int) -> Row:
        sums = torch.stack([value.float() for value in self._sums.values()])
        means = sums.div(
            torch.stack([torch.as_tensor(count, device=sums.device).float() for count in self._counts.values()])
        ).tolist()
        clock, waited = time.perf_counter(), runner.train_loop.waited
        seconds = max(clock - self._since[0], 1e-9)
        row: Row = {'step': step, **dict(zip(self._sums, means, strict=True))}
        row['lr'] = max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups)
        norm, runner.optim_wrapper.grad_norm = runner.optim_wrapper.grad_norm, None
        row['grad_norm'] = None if norm is None else float(norm)  # None: gradients were only accumulated
        row['steps_per_second'] = self._count / seconds
        row['data_wait'] = (waited - self._since[1]) / seconds  # share of the time
        row |= self._notes
        self._counts = {}
        self._sums, self._count, self._notes, self._since = {}, 0, {}, (clock, waited)
        return row

    def before_val(self, runner: Any) -> None:
        self._pause = (time.perf_counter(), runner.train_loop.waited)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        step = runner.train_loop.iter
        self.metrics = finite(metrics or {})
        for key in self.best_keys:
            check_metric(key, self.metrics, where='checkpoint.best')
        value, record = mean_of(self.best_keys, self.metrics), mean_of(self.best_keys, self.best)
        self.improved = value is not None and (record is None or self.sign * (value - record) > 0)
        if self.improved:
            self._best_before, self.best = self.best, {**self.metrics, 'step': step}
        self._add({'step': step, **self.metrics})
        self._since = (self._since[0] + time.perf_counter() - self._pause[0], self._since[1])
        self._write_json(runner)

    def after_train(self, runner: Any) -> None:
        self._write_json(runner)

    def best_is_lost(self, runner: Any) -> None:
        """The best weights could not be saved: those before are the best that there are."""
        self.best, self.improved = self._best_before, False
        self._write_json(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        with suppress(OSError), open(self.work_dir / 'metrics.csv', 'rb') as file:
            os.fsync(file.fileno())  # the rows up to a checkpoint outlive what the checkpoint outlives
        checkpoint['metrics'] = dict(self.metrics)
        checkpoint['best'] = dict(self.best)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the rows up to the step of the checkpoint; later ones were written by a run that was cut off."""
        self.metrics, self.best = checkpoint.get('metrics', {}), read_best(self.work_dir) or {}
        if checkpoint.get('best') and not self.best:
            logger.warning('best.pth is missing or damaged: the best weights are those from step %d on', runner.iter)
        self.rows = [row for row in read_rows(self.work_dir / 'metrics.csv') if row['step'] <= checkpoint['step']]
        if checkpoint['validation_pending']:  # it is done again, also where the run was killed after it
            self.rows = [row for row in self.rows if row['step'] < checkpoint['step'] or 'lr' in row]

    def _add(self, row: Row) -> None:
        row = finite(row)
        self.rows.append(row)
        if not is_main_process():
            return
        if not self._csv_whole or not set(row) <= set(self._columns):
            return self._rewrite()
        try:
            with open(self.work_dir / 'metrics.csv', 'a', newline='', encoding='utf-8') as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            self._csv_whole = False
            logger.warning('%s: metrics.csv not written; going on', disk_problem(error))

    def _rewrite(self) -> None:
        self._columns = list(dict.fromkeys(['step', *(key for row in self.rows for key in row)]))
        text = io.StringIO(newline='')
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self.rows)
        self._csv_whole = try_write_text(self.work_dir / 'metrics.csv', text.getvalue(), warn=self._csv_whole)

    def _write_json(self, runner: Any) -> None:
        if not is_main_process():
            return
        seeded = runner.train_dataloader.dataset.dataset
        content = {
            **self.metrics,
            'step': runner.train_loop.iter,
            'best': self.best,
            'skipped_steps': runner.optim_wrapper.refused,
            'bad_images': seeded.num_bad,
        }
        try_write_text(self.work_dir / 'metrics.json', json_text(content))


def _seen(key: str, outputs: Mapping[str, Tensor]) -> Tensor | int:
    """Return 1 if this step counts for the average of `key`, 0 if the task it belongs to had no label."""
    name, _, kind = key.partition('.')
    share = outputs.get(f'{name}.labelled')
    return 1 if share is None or kind in ('labelled', 'weight') else (share > 0).float()


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a `metrics.csv`; empty cells are left out.

    Rows that cannot be read, as a power cut or a full disk leaves them, are left out with a warning.
    """
    try:
        lines = path.read_bytes().decode(errors='replace').split('\n')
    except OSError:
        return []
    header = lines[0].rstrip('\r').split(',')
    rows = [_read_row(header, line) for line in lines[1:-1]]  # the last line is empty, or not whole
    broken = rows.count(None) + bool(lines[-1])
    if broken:
        logger.warning('%s: %d rows cannot be read and are left out', path.name, broken)
    return [row for row in rows if row is not None]


def _read_row(header: Sequence[str], line: str) -> Row | None:
    try:
        cells = next(csv.reader([line]))
        row = {
            key: int(cell) if key == 'step' else float(cell) for key, cell in zip(header, cells, strict=True) if cell
        }
    except (ValueError, csv.Error, StopIteration):
        return None
    return row if 'step' in row else None


def metric_names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of metrics that a config gives: one, several, or none."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def mean_of(names: Sequence[str], metrics: Mapping[str, Any]) -> float | None:
    """Return the mean of the metrics `names`; None while one of them has no value, and of no names."""
    values = [metrics.get(name) for name in names]
    return None if not values or None in values else sum(values) / len(values)


def check_metric(key: str, metrics: Mapping[str, Any], *, where: str) -> None:
    """Raise ConfigError when validation gave metrics, but not `key`."""
    if metrics and key not in metrics:
        raise ConfigError(
            f"there is no metric '{key}'{did_you_mean(key, metrics)}",
            where=where,
            why=f'validation gives {", ".join(metrics)}',
            fix=f"set {where} to one of them, such as '{next(iter(metrics))}'",
        )


def _names(metric: Any) -> Sequence[str]:
    return metric.names if isinstance(metric, ScoreNames) else ()


def check_metric_early(given: str | Sequence[str] | None, metrics: Sequence[Any], *, where: str) -> None:
    """Raise ConfigError at the start when no evaluator can give one of the metrics `given`.

    Evaluators are known by their prefix, and by their `names` where they have that attribute.
    """
    known = [f'{metric.prefix}/{name}' for metric in metrics for name in _names(metric) or ('...',)]
    for key in metric_names(given) if metrics else ():
        prefix, _, name = key.rpartition('/')
        owners = [metric for metric in metrics if metric.prefix == prefix]
        if not owners or not any(name in (_names(metric) or (name,)) for metric in owners):
            raise ConfigError(
                f"there is no metric '{key}'{did_you_mean(key, known)}",
                where=where,
                why=f'the evaluators give {", ".join(known)}',
                fix=f'set {where} to a metric that val_evaluator gives',
            )
