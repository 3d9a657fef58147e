"""Console and log file: one console for progress bars, tables and log lines, and a log file with everything."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

logger = logging.getLogger('vitdense')
LINE_EVERY = 30.0  # seconds between lines of progress where there is no terminal


@cache
def console() -> Console:
    """Return the console that everything is printed on; a live bar stays below what is printed.

    What is printed is plain text: `[...]` and `:...:` within names of classes and files have no meaning.
    """
    result = Console(file=SafeStdout(), highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not result.is_terminal:
        result.width = 200  # files and pipes have no edge
    return result


class SafeStdout:
    """`sys.stdout`, whatever that is at the time, where failures to write (full disk, closed terminal) end nothing."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream().flush()

    def _stream(self) -> Any:
        return getattr(sys.stdout, 'rich_proxied_file', sys.stdout)  # a live bar puts itself in front of it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


class ConsoleHandler(logging.Handler):
    """Print log records above a live bar; warnings are marked."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = f'{record.levelname.lower()}: ' if record.levelno >= logging.WARNING else ''
        console().print(mark + record.getMessage())


def start_logging(work_dir: Path | None, *, keep: bool = False) -> None:
    """Send the log of vitdense to the console and, with a work directory, to `log.txt` in it. Repeatable.

    With `keep`, lines are kept in memory for the `log.txt` of the next call. In distributed runs only the first
    process logs more than warnings.
    """
    logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
    logger.propagate = False
    kept = []
    for handler in list(logger.handlers):
        kept += handler.buffer if isinstance(handler, MemoryHandler) else []
        logger.removeHandler(handler)
        with suppress(OSError):  # what a full disk did not take
            handler.close()
    logger.addHandler(ConsoleHandler())
    if keep:
        logger.addHandler(MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1))
    if work_dir is not None and is_main_process():
        try:
            file = logging.FileHandler(work_dir / 'log.txt', encoding='utf-8', errors='backslashreplace')
        except OSError as error:
            logger.warning('log.txt cannot be written: %s', error.strerror or error)
            return
        file.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
        file.handleError = ignore_errors
        logger.addHandler(file)
        for record in kept:
            file.handle(record)


@contextmanager
def quiet() -> Iterator[None]:
    """Print nothing meanwhile: neither tables nor log lines."""
    before, console().quiet = console().quiet, True
    try:
        yield
    finally:
        console().quiet = before


def text_column(text: str) -> TextColumn:
    """Return a column of a progress bar that shows `text`, a format with `task`, as plain text."""
    return TextColumn(text, markup=False)


def ignore_errors(record: logging.LogRecord) -> None:
    """Do nothing where a log file cannot be written; logging's own `handleError` prints a traceback for each line."""


@contextmanager
def progress(what: str, count: int = 0) -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal, elsewhere a line from time to time; give the function that moves it to (done, total).

    That takes as its third argument what is counted, such as 'images'.
    """
    if not console().is_terminal:
        yield ProgressLines(what)
        return
    columns = text_column('{task.description}'), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(what, total=count or None)

        def update(done: int, total: int, unit: str = '') -> None:
            words = f'{what} {unit}'.rstrip()
            bar.update(task, completed=min(done, total) if total else done, total=total or None, description=words)

        yield update


class ProgressLines:
    """Prints, at most every `LINE_EVERY` seconds, how much of something is done, and how fast."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since, self._done = time.monotonic(), 0

    def __call__(self, done: int, total: int, unit: str = '') -> None:
        now = time.monotonic()
        if done < self._done:  # the next video
            self._since, self._done = now, 0
        if now - self._since < LINE_EVERY:
            return
        rate = (done - self._done) / max(now - self._since, 1e-9)
        count = f'{done:,} of {total:,}' if total else f'{done:,}'
        console().print(f'{self._what}: {f"{count} {unit}".rstrip()}, {rate:.3g} a second')
        self._since, self._done = now, done


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: words at the left, numbers at the right. The log file gets it as lines."""
    table = Table(title=title, title_justify='left', title_style='bold', show_edge=False, pad_edge=False)
    for row, name in enumerate(header):
        table.add_column(name, justify='left' if row == 0 else 'right')
    for row in rows:
        table.add_row(*row)
    console().print(table)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            text = '\n'.join('  '.join(cells) for cells in [header, *rows])
            handler.emit(logger.makeRecord('vitdense', logging.INFO, '', 0, f'{title}\n{text}', (), None))
