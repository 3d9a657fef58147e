"""What users wrote - names of classes, files, heads - is printed as it is, by tables, lines and bars."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from vitdense.metrics.confusion import write_confusion
from vitdense.reporting import console as module
from vitdense.reporting.console import console, print_table, progress, start_logging, text_column

NAMES = ['valve [/open]', '[red]', '[link=x]y[/link]', ':warning: sign', '[bold]a', 'a\\[b', '%s {0} $x^$']


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """A console on a terminal that is read."""
    file = io.StringIO()
    created = Console(
        file=file, force_terminal=True, color_system=None, width=200, markup=console()._markup, emoji=console()._emoji
    )
    monkeypatch.setattr(module, 'console', lambda: created)
    return file


@pytest.mark.parametrize('name', NAMES)
def test_tables_and_lines_show_names_as_they_are(name, capsys):
    print_table(f'step 1 {name}', ('class', name), [(name, '0.5'), ('other', name)])
    console().print(f'written: {name}')
    start_logging(None)
    logging.getLogger('vitdense').warning('classes: %s', name)
    logging.getLogger('vitdense').info(f'classes: {name}')
    assert capsys.readouterr().out.count(name) == 7


@pytest.mark.parametrize('name', NAMES)
def test_bars_show_names_as_they_are(name, terminal):
    with progress(f'features, {name}', 2) as report:
        report(1, 2)
    assert name in terminal.getvalue()
    assert not text_column('{task.description}').markup


def test_without_a_terminal_progress_is_a_line_from_time_to_time(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 30.0, 45.0, 50.0, 80.0])
    monkeypatch.setattr(module.time, 'monotonic', lambda: next(clock))
    with progress('predict', 3) as report:
        for done in (20, 60, 75):
            report(done, 900, 'frames of a.mp4')
        report(1, 0, 'frames of b.mp4')
        report(31, 0, 'frames of b.mp4')
    lines = ['predict: 60 of 900 frames of a.mp4, 2 a second', 'predict: 31 frames of b.mp4, 1.03 a second']
    assert capsys.readouterr().out.splitlines() == lines


def test_a_name_in_a_confusion_matrix_is_no_formula(tmp_path):
    import numpy as np

    write_confusion(np.eye(2, dtype=int), ['$x^$', '$\\nothing$'], tmp_path)
    assert (tmp_path / 'confusion.png').stat().st_size > 1000
