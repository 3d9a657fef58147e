"""The display of a run: a progress bar (plain lines where there is no terminal) and tables of scores."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import is_main_process
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from vitdense.protocols import Tabulated
from vitdense.reporting.console import console, print_table, text_column

ROWS = 45  # a longer table is folded into several beside each other
HEADERS = {'name': 'class', 'iou': 'IoU', 'acc': 'Acc', 'dice': 'Dice', 'ap': 'AP', 'ap50': 'AP50', 'ap75': 'AP75'}


class ProgressDisplay:
    """Step, loss, steps per second, the time left, and the share of time spent waiting for data."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._bar: Progress | None = None
        self._task: Any = None
        self._first = 0
        self._began = 0.0

    def begin(self, step: int) -> None:
        """Start the clock and, in a terminal, the bar; `step` steps are done."""
        self._first, self._began = step, time.perf_counter()
        if is_main_process() and console().is_terminal:
            self._bar = Progress(
                text_column('{task.description}'),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                text_column('{task.fields[words]}'),
                console=console(),
            )
            self._task = self._bar.add_task('train', total=self.total, completed=step, words='')
            self._bar.start()

    def step(self, step: int, row: Mapping[str, Any] | None) -> None:
        """Show that `step` steps are done, and the numbers of `row` where there are new ones."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if row is None or not is_main_process():
            return
        eta = (self.total - step) * (time.perf_counter() - self._began) / max(step - self._first, 1)
        speed = f'{row["steps_per_second"]:.2f} it/s'
        status = (
            f'loss {score_text(row.get("loss"))}  {speed}  eta {_clock(eta)}  data wait {100 * row["data_wait"]:.0f} %'
        )
        if self._bar is not None:
            self._bar.update(self._task, words=status)
        else:
            console().print(f'step {step}/{self.total}  {status}  lr {row["lr"]:.2e}')

    def validation(self, batches: str = '') -> None:
        """Show that a validation is under way, and how far."""
        if self._bar is not None:
            self._bar.update(self._task, description=f'validate {batches}'.rstrip())

    def validated(
        self, step: int, metrics: Mapping[str, Any], evaluators: Sequence[Any], *, images: int, seconds: float
    ) -> None:
        """Print the scores of a validation on a set of `images`, which took `seconds`."""
        if self._bar is not None:
            self._bar.update(self._task, description='train')
        self._began += seconds
        if is_main_process():
            count = evaluated(metrics, images)
            print_metrics(evaluators, metrics, title=f'step {step}, {count}' if count else f'step {step}')

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def evaluated(metrics: Mapping[str, Any], total: int) -> str:
    """Return how many of `total` images the scores are of, where some were skipped."""
    skipped = metrics.get('skipped_images', 0)
    return f'evaluated {total - skipped}/{total} images' if skipped else ''


def print_metrics(evaluators: Sequence[Any], metrics: Mapping[str, Any], *, title: str) -> None:
    """Print the scores, and the per-class table of every evaluator that has one."""
    for evaluator in evaluators:
        scores = [
            f'{key.rpartition("/")[2]} {score_text(value)}'
            for key, value in metrics.items()
            if key.rpartition('/')[0] == evaluator.prefix
        ]
        heading = f'{title}  {evaluator.prefix}: {", ".join(scores) or "n/a"}'
        rows = evaluator.table() if isinstance(evaluator, Tabulated) else []
        occurring = [row for row in rows if any(isinstance(value, float) or value for value in row[1:])]
        if len(rows) > ROWS and 0 < len(occurring) < len(rows):  # many classes and few images: list what is there
            heading += f'  ({len(rows) - len(occurring)} classes that do not occur are not listed)'
            rows = occurring
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
    return f'{value:.3f}' if isinstance(value, float) else f'{value:,}' if isinstance(value, int) else str(value)


def score_text(value: float | None) -> str:
    """Return a score or loss with four digits, or 'n/a'."""
    return 'n/a' if value is None or not math.isfinite(value) else f'{value:.4f}'


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
