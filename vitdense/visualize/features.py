"""Feature maps as images: principal components as RGB, and heat maps of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

PALE = 0.25  # opacity of a heat map at value 0


class Components(NamedTuple):
    """Principal components of one map, as colours. Cells of the background are black in `front`."""

    whole: np.ndarray  # (h, w, 3) uint8: components over all cells
    front: np.ndarray  # (h, w, 3) uint8: components over the cells of the foreground alone


def principal_colors(maps: Sequence[Tensor]) -> list[Components]:
    """Return the first three principal components of `maps` (each (C, h, w), any sizes) as red, green and blue.

    The components are computed over all maps together, so colours are comparable. The foreground is segmented as in
    DINOv2 (https://arxiv.org/abs/2304.07193, section 7.5) by a threshold on a component: of the three components, each
    cut by Otsu's method, the side that lies most inside the maps; `front` shows the components of the foreground.
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
    return [
        Components(*((one.unflatten(0, grid) * 255).round().byte().numpy() for one in pair)) for *pair, grid in pairs
    ]


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
    share = (PALE + (1 - PALE) * heat)[..., None]  # high values are opaque
    return (grey * (1 - share) + colors * share).astype(np.uint8)


def _principal(cells: Tensor) -> Tensor:
    """Return the first three components (N, 3) of `cells` (N, C), each with the sign of its largest weight."""
    centred = cells - cells.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, -3:].flip(1)  # (C, 3)
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return centred @ (axes * signs)


def _foreground(values: Tensor, border: Tensor) -> Tensor:
    """Return (N,) bool: the side of a threshold on one column of `values` (N, 3) that lies most inside the map.

    The score is its share of the inner cells less that of the `border` (N,) bool cells, times the separability.
    """
    best, foreground = -1.0, border.new_zeros(len(border))
    for column in values.T:
        cut, separability = _otsu(column)
        for side in (column > cut, column <= cut):
            score = separability * float(side[~border].double().mean() - side[border].double().mean())
            if score > best:
                best, foreground = score, side
    return foreground


def _otsu(values: Tensor) -> tuple[float, float]:
    """Return Otsu's threshold of `values` (N,), and the share of their variance between the two sides."""
    if len(values) < 2:
        return float(values[0]), 0.0
    ordered = values.sort().values
    count = torch.arange(1, len(ordered), dtype=ordered.dtype)
    below = ordered.cumsum(0)[:-1]
    above = ordered.sum() - below
    num_above = len(ordered) - count
    between = count * num_above * (below / count - above / num_above) ** 2 / len(ordered) ** 2
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
