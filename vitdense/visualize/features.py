"""Colours of features: principal components as RGB, and heat maps of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

PALE = 0.25  # what is left of an image behind a heat map where nothing is hot


class Components(NamedTuple):
    """Principal components of one map, as colours. Cells of the background are black in `front`."""

    whole: np.ndarray  # (h, w, 3) uint8: components over all cells
    front: np.ndarray  # (h, w, 3) uint8: components over the cells of the foreground alone


def principal_colors(maps: Sequence[Tensor]) -> list[Components]:
    """Return the first three principal components of `maps` (each (C, h, w), any sizes) as red, green and blue.

    The components are those of all maps together, so a colour means the same in each of them. The foreground is found
    much as in DINOv2 (https://arxiv.org/abs/2304.07193, section 7.5), where a threshold of the first component parts
    figure and ground, and the components of the figure alone are shown. Here each of the three is cut where its sides
    differ most, and that side of one of them is the figure which is most at the inside of the maps.
    """
    grids = [(one.shape[1], one.shape[2]) for one in maps]
    cells = torch.cat([one.flatten(1).T.double() for one in maps])  # (N, C)
    parts = [height * width for height, width in grids]
    values = _principal(cells)  # (N, 3)
    front = _foreground(values, torch.cat([_border(grid) for grid in grids]))
    colors = torch.zeros(len(cells), 3, dtype=torch.float64)
    if front.sum() > 3:
        colors[front] = _stretched(_principal(cells[front]))
    pairs = zip(_stretched(values).split(parts), colors.split(parts), grids, strict=True)
    return [Components(*(_bytes(one.unflatten(0, grid)) for one in pair)) for *pair, grid in pairs]


def heat_map(values: Tensor, image: np.ndarray, *, overlay: bool = True) -> np.ndarray:
    """Return `values` (h, w), not negative, as heat of the size of `image` (H, W, 3) uint8, (H, W, 3) uint8.

    The scale begins at 0 and ends at the 99.5th percentile. With `overlay` the image shows through in grey.
    """
    size = image.shape[1], image.shape[0]
    top = max(float(values.float().quantile(0.995)), 1e-12)
    heat = (values.float() / top).clamp(0, 1).cpu().numpy()
    heat = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR if overlay else cv2.INTER_NEAREST)
    colors = cv2.cvtColor(cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    if not overlay:
        return colors
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    share = (PALE + (1 - PALE) * heat)[..., None]  # what is hot hides the image
    return (grey * (1 - share) + colors * share).astype(np.uint8)


def _principal(cells: Tensor) -> Tensor:
    """Return the first three components (N, 3) of `cells` (N, C), each with the sign of its largest weight."""
    centred = cells - cells.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, -3:].flip(1)  # (C, 3)
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return centred @ (axes * signs)


def _foreground(values: Tensor, border: Tensor) -> Tensor:
    """Return (N,) bool: of the two sides of each column of `values` (N, 3), the one that is most at the inside.

    That is the difference of its shares of the inner cells and of the `border` (N,) bool, times how well the column
    falls in two.
    """
    best, figure = -1.0, border.new_zeros(len(border))
    for column in values.T:
        cut, clearness = _parting(column)
        for side in (column > cut, column <= cut):
            score = clearness * float(side[~border].double().mean() - side[border].double().mean())
            if score > best:
                best, figure = score, side
    return figure


def _parting(values: Tensor) -> tuple[float, float]:
    """Return where `values` (N,) fall in two best, and the share of their variance between the sides (Otsu 1979)."""
    if len(values) < 2:
        return float(values[0]), 0.0
    ordered = values.sort().values
    count = torch.arange(1, len(ordered), dtype=ordered.dtype)
    below = ordered.cumsum(0)[:-1]
    above = ordered.sum() - below
    rest = len(ordered) - count
    between = count * rest * (below / count - above / rest) ** 2 / len(ordered) ** 2
    cut = int(between.argmax())
    variance = max(float(ordered.var(correction=0)), 1e-12)
    return float(ordered[cut] + ordered[cut + 1]) / 2, float(between[cut]) / variance


def _border(grid: tuple[int, int]) -> Tensor:
    """Return (h * w,) bool, True in the outermost cells."""
    inside = torch.zeros(grid, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return ~inside.flatten()


def _stretched(values: Tensor) -> Tensor:
    """Return the columns of `values` (N, 3) stretched to [0, 1], a hundredth of the cells cut off at either end."""
    low, high = values.quantile(torch.tensor([0.01, 0.99], dtype=values.dtype), dim=0)
    return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def _bytes(colors: Tensor) -> np.ndarray:
    return (colors * 255).round().byte().numpy()
