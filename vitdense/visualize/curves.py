"""Plots of a training run: losses with the learning rate, and validation metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.visualize.fonts import new_figure, one_line, plot_style, save_plot

CROWDED = 8  # metrics of a head that share a panel; more are split by what they measure (AP, AR)
COLUMNS = 3
STYLES = tuple(product(('-', '--', ':', '-.'), (f'C{number}' for number in range(10))))  # matplotlib has ten colours


def plot_curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write the curves of a run as a PNG: losses (with the learning rate), and a panel of metrics for each head.

    `rows` are the parsed rows of `metrics.csv`: `step`, keys with `loss`, `lr`, and validation metrics (all other
    numbers whose key has a `/`, as in `sem/mIoU`); a row may lack any of them. In a panel no two curves look alike.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    groups = metric_groups([key for key in keys if '/' in key and 'loss' not in key])
    groups = groups or {'validation: no results yet': []}
    columns = min(COLUMNS, 1 + len(groups))
    height = -(-(1 + len(groups)) // columns)
    figure = new_figure(6 * columns, 4.5 * height)
    panels = list(figure.subplots(height, columns, squeeze=False).flat)
    _draw_losses(panels[0], rows, [key for key in keys if 'loss' in key])
    for panel, (title, members) in zip(panels[1:], groups.items(), strict=False):
        for key, (line, color) in zip(members, cycle(STYLES), strict=False):
            label = key.removeprefix(f'{title.partition(":")[0]}/')
            _curve(panel, rows, key, label=label, linestyle=line, color=color, marker='o', markersize=3)
        panel.set_title(one_line(title), **plot_style([title]))
    for panel in panels[1 + len(groups) :]:
        panel.remove()
    for panel in panels[: 1 + len(groups)]:
        panel.set_xlabel('step')
        panel.grid(alpha=0.3)
        _add_legend(panel)
    path = Path(path)
    save_plot(figure, path, dpi=110)
    return path


def metric_groups(keys: Sequence[str]) -> dict[str, list[str]]:
    """Return `{title: keys}` of the panels: the keys `HEAD/...` of each head, split by their capitals if many."""
    heads: dict[str, list[str]] = {}
    for key in keys:
        heads.setdefault(key.rpartition('/')[0], []).append(key)
    groups: dict[str, list[str]] = {}
    for head, members in heads.items():
        for key in members:
            capitals = re.match('[A-Z]*', key.rpartition('/')[2])[0] if len(members) > CROWDED else ''
            groups.setdefault(f'{head}: {capitals}' if capitals else head, []).append(key)
    return groups


def _draw_losses(panel: Any, rows: Sequence[Mapping[str, Any]], losses: Sequence[str]) -> None:
    for key, (line, color) in zip(losses, cycle(STYLES), strict=False):
        _curve(panel, rows, key, smooth=True, width=2.2 if key == 'loss' else 1.2, linestyle=line, color=color)
    panel.set_title('loss')
    rates = panel.twinx()
    _curve(rates, rows, 'lr', color='0.6', linestyle=':', label='learning rate')
    rates.set_ylabel('learning rate', color='0.5')


def _add_legend(panel: Any) -> None:
    """Name the curves of a panel; matplotlib leaves out names that begin with '_'."""
    lines = [line for line in panel.lines if not str(line.get_label()).startswith('_child')]
    if not lines:
        return
    names = [str(line.get_label()) for line in lines]
    legend = panel.legend(lines, [f' {one_line(name)}' for name in names], fontsize=8, ncols=1 + len(lines) // 12)
    style = plot_style(names)
    for text in legend.get_texts():
        text.set(fontfamily=style['fontfamily'], parse_math=style['parse_math'])


def _curve(panel: Any, rows: Sequence[Mapping[str, Any]], key: str, *, smooth: bool = False, **style: Any) -> None:
    """Draw one key over the steps; a noisy one as a pale line with its running mean on top."""
    points = [(number(row.get('step')), number(row.get(key))) for row in rows]
    steps, values = np.array([point for point in points if np.isfinite(point).all()]).reshape(-1, 2).T
    style = {'label': key, 'linewidth': style.pop('width', 1.5), **style}
    if smooth and len(values) >= 40:
        pale = {name: value for name, value in style.items() if name != 'label'}
        panel.plot(steps, values, **{**pale, 'alpha': 0.25, 'linewidth': 0.8})
        window = len(values) // 20
        sums = np.cumsum(np.concatenate([np.full(window, values[0]), values]))
        values = (sums[window:] - sums[:-window]) / window
    if len(values):
        panel.plot(steps, values, **style)


def number(value: Any) -> float:
    """Return a table cell as a float, NaN if it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
