"""History of a run: averaged losses, validation metrics and the best of them."""

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
from torch import Tensor

from vitdense.arguments import check
from vitdense.checkpoints.run import read_best
from vitdense.errors import did_you_mean
from vitdense.protocols import ScoreNames
from vitdense.storage.atomic import disk_problem, finite, json_text, try_write_text

logger = logging.getLogger('vitdense')
Row = dict[str, float | int | None]


class History:
    """One row of numbers for every `interval` steps and one for every validation, in `metrics.csv` and `metrics.json`.

    Losses are averaged over the interval on the device, and read once per interval; those of a task that some batches
    have no label for (`TASK.labelled` is 0) over the others. Values that are not finite become
    None: empty in the csv file, null in the json file. `best` is the name of the metric by which validations are
    compared, or a list of names whose mean is, and `rule` says whether more is better.

    Where one of the files cannot be written, a warning is logged and the next write completes it.
    """

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
        self.metrics: Row = {}  # of the last validation
        self.best: Row = {}
        self._best_before: Row = {}
        self._csv_whole = True  # metrics.csv holds all rows
        self._columns: list[str] = []
        self._since = 0.0  # the clock at the last row
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | int] = {}  # by key: the steps that count for it
        self._steps = 0
        self._waited = 0.0
        self._grad_norm: float | None = None
        self._notes: Row = {}

    def begin(self) -> None:
        """Start the clock, and write the rows before the first step."""
        self._since = time.perf_counter()
        if is_main_process():
            self._rewrite()

    def note(self, values: Row) -> None:
        """Write `values` into the next row of training, beside the averages."""
        self._notes |= values

    def add_step(
        self, step: int, losses: Mapping[str, Tensor], *, lr: float, grad_norm: float | None, waited: float, last: bool
    ) -> Row | None:
        """Add the numbers of step number `step` (from 1), and return the row that it completes, if it does.

        `grad_norm` is None while gradients are accumulated; `waited` are the seconds that the batch took to come.
        """
        for key, value in losses.items():
            counted = _is_counted(key, losses)
            self._sums[key] = self._sums.get(key, 0) + value.detach() * counted
            self._counts[key] = self._counts.get(key, 0) + counted
        self._steps += 1
        self._waited += waited
        self._grad_norm = self._grad_norm if grad_norm is None else grad_norm
        if step % self.interval and not last:
            return None
        row = self._add({'step': step, **self._means(), 'lr': lr, 'grad_norm': self._grad_norm, **self._speed()})
        self._reset()
        return row

    def _means(self) -> Row:
        sums = torch.stack([value.float() for value in self._sums.values()])
        counts = [torch.as_tensor(count, device=sums.device).float() for count in self._counts.values()]
        return dict(zip(self._sums, sums.div(torch.stack(counts)).tolist(), strict=True))

    def _speed(self) -> Row:
        clock = time.perf_counter()
        seconds = max(clock - self._since, 1e-9)
        self._since = clock
        return {'steps_per_second': self._steps / seconds, 'data_wait': self._waited / seconds, **self._notes}

    def add_validation(self, step: int, metrics: Mapping[str, float], *, seconds: float) -> tuple[Row, bool]:
        """Add the scores of a validation; return its row, and whether it is the best so far.

        Raises ConfigError where the metric for the best is not among them.
        """
        self.metrics = finite(metrics)
        for key in self.best_keys:
            check_metric(key, self.metrics, where='checkpoint.best')
        value, record = mean_of(self.best_keys, self.metrics), mean_of(self.best_keys, self.best)
        improved = value is not None and (record is None or self.sign * (value - record) > 0)
        if improved:
            self._best_before, self.best = self.best, {**self.metrics, 'step': step}
        self._since += seconds  # a validation does not count for the speed of training
        return self._add({'step': step, **self.metrics}), improved

    def restore_best(self) -> None:
        """Go back to the previous best: the weights of the last one could not be saved."""
        self.best = self._best_before

    def state(self) -> dict[str, Any]:
        """Return its state for a checkpoint. The rows up to here are on the disk before the checkpoint is."""
        with suppress(OSError), open(self.work_dir / 'metrics.csv', 'rb') as file:
            os.fsync(file.fileno())
        return {'metrics': dict(self.metrics), 'best': dict(self.best)}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on with the rows up to the step of the checkpoint; later ones were written by a run that was cut off."""
        step = checkpoint['step']
        self.metrics, self.best = checkpoint.get('metrics', {}), read_best(self.work_dir) or {}
        if checkpoint.get('best') and not self.best:
            logger.warning('best.pth is missing or damaged: the best weights are those from step %d on', step)
        self.rows = [row for row in read_rows(self.work_dir / 'metrics.csv') if row['step'] <= step]
        if checkpoint['validation_pending']:  # it is done again, also where the run was killed after it
            self.rows = [row for row in self.rows if row['step'] < step or 'lr' in row]

    def _add(self, row: Row) -> Row:
        row = finite(row)
        self.rows.append(row)
        if is_main_process():
            self._write(row)
        return row

    def _write(self, row: Row) -> None:
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

    def write_json(self, step: int, **counts: int) -> None:
        """Write `metrics.json`: the scores of the last validation, the best ones, and `counts`."""
        if is_main_process():
            content = {**self.metrics, 'step': step, 'best': self.best, **counts}
            try_write_text(self.work_dir / 'metrics.json', json_text(content))


def _is_counted(key: str, outputs: Mapping[str, Tensor]) -> Tensor | int:
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


def metric_names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of metrics that a config gives: one, several, or none."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def mean_of(names: Sequence[str], metrics: Mapping[str, Any]) -> float | None:
    """Return the mean of the metrics `names`; None while one of them has no value, and of no names."""
    values = [metrics.get(name) for name in names]
    return None if not values or None in values else sum(values) / len(values)


def check_metric(key: str, metrics: Mapping[str, Any], *, where: str) -> None:
    """Raise ConfigError when validation gave metrics, but not `key`."""
    why = f'there is no such metric; validation gives {", ".join(metrics)}{did_you_mean(key, metrics)}'
    check(not metrics or key in metrics, where, key, why, f"write one of them, such as '{next(iter(metrics), '')}'")


def _names(metric: Any) -> Sequence[str]:
    return metric.names if isinstance(metric, ScoreNames) else ()


def check_metric_early(names: str | Sequence[str] | None, metrics: Sequence[Any], *, where: str) -> None:
    """Raise ConfigError at the start when no evaluator can give one of the metrics `names`.

    Evaluators are known by their prefix, and by their `names` where they have that attribute.
    """
    known = [f'{metric.prefix}/{name}' for metric in metrics for name in _names(metric) or ('...',)]
    for key in metric_names(names) if metrics else ():
        prefix, _, name = key.rpartition('/')
        owners = [metric for metric in metrics if metric.prefix == prefix]
        why = f'there is no such metric; the evaluators give {", ".join(known)}{did_you_mean(key, known)}'
        offered = any(name in (_names(metric) or (name,)) for metric in owners)
        check(offered, where, key, why, 'write a metric that val_evaluator gives')
