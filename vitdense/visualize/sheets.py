"""Many pictures on one sheet, and the curves of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitdense.visualize.pictures import as_picture, enlarge
from vitdense.visualize.text import INK, PAPER, font, shorten

SHEET_WIDTH = 1920  # pixels; a sheet is about as wide as a screen
GAP = 6


def contact_sheet(
    images: Sequence[Tensor | np.ndarray],
    path: str | Path,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Write what `arrange` makes of `images` as one JPEG, and return its path."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(arrange(images, columns, titles)).save(path, format='JPEG', quality=92)
    return path


def arrange(
    images: Sequence[Tensor | np.ndarray], columns: int | None = None, titles: Sequence[str] | None = None
) -> np.ndarray:
    """Return `images` (uint8 RGB, any sizes) as one sheet (H, W, 3) uint8 of at most 1920 pixels width.

    Small pictures are enlarged by a whole factor, large ones reduced; every picture keeps its proportions.
    `columns` defaults to a sheet that is wider than high. Raises ValueError for no pictures.
    """
    from PIL import Image, ImageDraw

    if not images:
        raise ValueError('a contact sheet needs at least one picture')
    if titles is not None and len(titles) != len(images):
        raise ValueError(f'{len(images)} pictures need as many titles, got {len(titles)}')
    columns = columns or _columns(images)
    room = (SHEET_WIDTH - GAP) // columns - GAP
    tiles = [_fit(as_picture(img), room) for img in images]
    size = max(12, min(24, room // 20))
    title_height = round(size * 1.5) if titles else 0
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    cell = max(tile.shape[1] for tile in tiles)
    heights = [max(tile.shape[0] for tile in row) + title_height for row in rows]
    sheet = Image.new('RGB', (GAP + columns * (cell + GAP), GAP + sum(height + GAP for height in heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = GAP
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            left = GAP + column * (cell + GAP)
            if titles:
                words = shorten(titles[number * columns + column], int(cell / size * 1.7))
                pen.text((left, top + title_height / 2), words, fill=INK, font=font(size), anchor='lm')
            sheet.paste(Image.fromarray(tile), (left, top + title_height))
        top += heights[number] + GAP
    return np.asarray(sheet)


def _columns(images: Sequence[Tensor | np.ndarray]) -> int:
    """Return the number of columns that brings a sheet near to 3 : 2."""
    height, width = (float(np.median([as_picture(img).shape[axis] for img in images])) for axis in (0, 1))
    return max(1, min(len(images), round(math.sqrt(len(images) * 1.5 * height / width))))


def _fit(picture: np.ndarray, room: int) -> np.ndarray:
    """Return the picture at most `room` pixels wide (and twice as high), enlarged only by a whole factor."""
    from PIL import Image

    height, width = picture.shape[:2]
    scale = min(room / width, 2 * room / height)
    if scale >= 1:
        return enlarge(picture, min(int(scale), max(1, -(-480 // max(height, width)))))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def plot_curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write the curves of a run as a PNG: losses (with the learning rate) at the left, validation metrics at the right.

    `rows` are the parsed rows of `metrics.csv`: `step`, keys with `loss`, `lr`, and validation metrics (all other
    numbers whose key has a `/`, as in `sem/mIoU`); a row may lack any of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(key for row in rows for key in row))
    losses = [key for key in keys if 'loss' in key]
    metrics = [key for key in keys if '/' in key and 'loss' not in key]
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for key in losses:
        _curve(left, rows, key, smooth=True, width=2.2 if key == 'loss' else 1.2)
    left.set(xlabel='step', title='loss')
    rates = left.twinx()
    _curve(rates, rows, 'lr', color='0.6', linestyle=':', label='learning rate')
    rates.set_ylabel('learning rate', color='0.5')
    for key in metrics:
        _curve(right, rows, key, marker='o', markersize=3)
    right.set(xlabel='step', title='validation' if metrics else 'validation: no results yet')
    for panel in (left, right):
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=8, ncols=1 + len(panel.lines) // 12)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _curve(panel: Any, rows: Sequence[Mapping[str, Any]], key: str, *, smooth: bool = False, **style: Any) -> None:
    """Draw one key over the steps; a noisy one as a pale line with its running mean on top."""
    points = [(number(row.get('step')), number(row.get(key))) for row in rows]
    steps, values = np.array([point for point in points if np.isfinite(point).all()]).reshape(-1, 2).T
    style = {'label': key, 'linewidth': style.pop('width', 1.5), **style}
    if smooth and len(values) >= 40:
        pale = {name: value for name, value in style.items() if name != 'label'}
        color = panel.plot(steps, values, **{**pale, 'alpha': 0.25, 'linewidth': 0.8})[0].get_color()
        window = len(values) // 20
        sums = np.cumsum(np.concatenate([np.full(window, values[0]), values]))
        values = (sums[window:] - sums[:-window]) / window
        style['color'] = color
    if len(values):
        panel.plot(steps, values, **style)


def number(value: Any) -> float:
    """Return a cell of a table as a float; an empty or wordy one is NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
