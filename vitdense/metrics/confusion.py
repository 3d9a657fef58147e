"""Confusion matrices on disk: numbers, a table and an image."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.protocols import WithConfusion
from vitdense.visualize.fonts import new_figure, one_line, plot_style, save_plot, warn_missing_glyphs


def write_confusion(
    counts: np.ndarray, classes: Sequence[str], folder: str | Path, *, stem: str = 'confusion', what: str = 'pixels'
) -> None:
    """Write `<stem>.npy`, `<stem>.csv` (rows: targets) and `<stem>.png` of (K, K) counts into `folder`.

    `what` is counted.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f'{stem}.npy', counts)
    with open(folder / f'{stem}.csv', 'w', newline='', encoding='utf-8', errors='backslashreplace') as file:
        writer = csv.writer(file)
        writer.writerow(['target / prediction', *classes])
        writer.writerows([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))
    _draw(counts, classes, folder / f'{stem}.png', what)


def save_confusions(metrics: Iterable[Any], folder: str | Path) -> None:
    """Write the confusion matrix of each of `metrics` that has one; several of a kind are called by their prefix."""
    able = [metric for metric in metrics if isinstance(metric, WithConfusion)]
    kinds = Counter(map(type, able))
    for metric in able:
        alone = kinds[type(metric)] == 1
        metric.save_confusion(folder, **({} if alone else {'stem': f'confusion_{metric.prefix.replace("/", "_")}'}))


def _draw(counts: np.ndarray, classes: Sequence[str], path: Path, what: str) -> None:
    """Draw the share of each true class that goes to each predicted class."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(4.0, 0.28 * len(classes) + 2), 24.0)  # inches
    figure = new_figure(side, side)
    axes = figure.add_subplot(xlabel='prediction', ylabel='target')
    image = axes.imshow(share, vmin=0, vmax=1, cmap='viridis')
    figure.colorbar(image, ax=axes, shrink=0.7, label=f'share of the true {what}')
    if len(classes) <= 80:  # more names than that are not legible
        warn_missing_glyphs(tuple(classes))
        classes = [one_line(name) for name in classes]
        style = {'fontsize': 7, **plot_style(classes)}
        axes.set_xticks(range(len(classes)), classes, rotation=90, **style)
        axes.set_yticks(range(len(classes)), classes, **style)
    save_plot(figure, path, dpi=120)
