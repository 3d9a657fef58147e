"""What a person sees while a run is under way: a live bar (plain lines where there is no terminal) and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from vitdense.protocols import Tabulated
from vitdense.reporting.console import console, print_table, text_column

ROWS = 45  # a longer table is folded into several beside each other
HEADERS = {'name': 'class', 'iou': 'IoU', 'acc': 'Acc', 'dice': 'Dice', 'ap': 'AP', 'ap50': 'AP50', 'ap75': 'AP75'}


class ProgressHook(Hook):
    """Show step, loss, steps per second, the time left, and the share of time spent waiting for data."""

    priority = 'LOW'

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = (0.0, 0)
        self._paused = 0.0

    def before_train(self, runner: Any) -> None:
        self._began = (time.perf_counter(), runner.iter)
        if is_main_process() and console().is_terminal:
            self._bar = Progress(
                text_column('{task.description}'),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                text_column('{task.fields[words]}'),
                console=console(),
            )
            self._task = self._bar.add_task('train', total=runner.max_iters, completed=runner.iter, words='')
            self._bar.start()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        step, history = batch_idx + 1, runner.history
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if not is_main_process() or not history.rows or history.rows[-1]['step'] != step:
            return
        row = history.rows[-1]
        left = (runner.max_iters - step) * (time.perf_counter() - self._began[0] - self._paused)
        eta = left / max(step - self._began[1], 1)
        speed = f'{row["steps_per_second"]:.2f} it/s'
        status = (
            f'loss {_number(row.get("loss"))}  {speed}  eta {_clock(eta)}  data wait {100 * row["data_wait"]:.0f} %'
        )
        if self._bar is not None:
            self._bar.update(self._task, words=status)
        else:
            console().print(f'step {step}/{runner.max_iters}  {status}  lr {row["lr"]:.2e}')

    def before_val(self, runner: Any) -> None:
        self._since = time.perf_counter()
        self._show('validate')

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._show(f'validate {batch_idx + 1}/{len(runner.val_dataloader)}')

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        self._show('train')
        self._paused += time.perf_counter() - self._since
        if is_main_process():
            metrics, step = runner.history.metrics, f'step {runner.train_loop.iter}'
            count = evaluated(metrics, len(runner.val_dataloader.dataset))
            print_metrics(runner.val_evaluator.metrics, metrics, title=f'{step}, {count}' if count else step)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=what)


def evaluated(metrics: Mapping[str, Any], total: int) -> str:
    """Return how many of `total` images the scores are of, where some were skipped."""
    skipped = metrics.get('skipped_images', 0)
    return f'evaluated {total - skipped}/{total} images' if skipped else ''


def print_metrics(evaluators: Sequence[Any], metrics: Mapping[str, Any], *, title: str) -> None:
    """Print the scores, and the per-class table of every evaluator that has one."""
    for evaluator in evaluators:
        scores = [
            f'{key.rpartition("/")[2]} {_number(value)}'
            for key, value in metrics.items()
            if key.rpartition('/')[0] == evaluator.prefix
        ]
        heading = f'{title}  {evaluator.prefix}: {", ".join(scores) or "n/a"}'
        rows = evaluator.table() if isinstance(evaluator, Tabulated) else []
        seen = [row for row in rows if any(isinstance(value, float) or value for value in row[1:])]
        if len(rows) > ROWS and 0 < len(seen) < len(rows):  # a long vocabulary on few images: list what is there
            heading += f'  ({len(rows) - len(seen)} classes that do not occur are not listed)'
            rows = seen
        if rows:
            header = [HEADERS.get(field, field) for field in rows[0]._fields]
            cells = [[_cell(value) for value in row] for row in rows]
            print_table(heading, *fold(header, cells, width=console().width))
        else:
            console().print(heading)


def fold(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 200
) -> tuple[list[str], list[list[str]]]:
    """Return a long table as several side by side, as many as fit into `width` characters."""
    widths = [max(len(cells[column]) for cells in [header, *rows]) + 3 for column in range(len(header))]
    blocks = max(1, min(-(-len(rows) // ROWS), width // sum(widths)))
    height = -(-len(rows) // blocks)
    filled = [*rows, *([[''] * len(header)] * (blocks * height - len(rows)))]
    folded = [[cell for block in range(blocks) for cell in filled[block * height + row]] for row in range(height)]
    return list(header) * blocks, folded


def _cell(value: Any) -> str:
    if value is None:
        return 'n/a'
    return f'{100 * value:.1f}' if isinstance(value, float) else f'{value:,}' if isinstance(value, int) else str(value)


def _number(value: float | None) -> str:
    return 'n/a' if value is None or not math.isfinite(value) else f'{value:.4f}'


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
