"""Sine position encodings of the cells of a map and of boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitdense.ops.padding import whole_map


def sine_positions(
    x: Tensor, channels: int, extents: Tensor | None = None, *, temperature: float = 10000.0, offset: float = 0.0
) -> Tensor:
    """Return the encoding (B or 1, h * w, channels) float32 of every cell of the map `x` (B, C, h, w).

    Rows fill the first half of the channels, columns the second, each with sines and cosines in turn (DETR, Carion et
    al. 2020, appendix A.4). Cell i of n lies at (i + 1 + offset) / n of the image, where n counts the image's own
    cells (`extents` (B, 2)): the same alone and in a padded batch. `offset` is 0 in DETR and -0.5, the middle of the
    cell, in Deformable-DETR; `temperature` is 10000 in both and 20 in DINO.
    """
    used = whole_map(x) if extents is None else extents
    height, width = x.shape[-2:]
    rows, columns = (
        _waves(_share(length, used[:, axis], offset), channels // 2, temperature)
        for axis, length in enumerate((height, width))
    )  # (B, h, channels / 2), (B, w, channels / 2)
    rows = rows[:, :, None].expand(-1, -1, width, -1)
    columns = columns[:, None].expand(-1, height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(1, 2)  # (B, h, w, channels) -> (B, h * w, channels)


def sine_boxes(boxes: Tensor, channels: int) -> Tensor:
    """Return the encodings (..., n * channels) float32 of the n numbers of `boxes` (..., n) in [0, 1], in their order.

    As Deformable-DETR encodes proposals (Zhu et al. 2021, appendix A.4) and DAB-DETR its anchors (Liu et al. 2022,
    equation 3; there the row comes before the column: see `rows_first`).
    """
    return _waves(boxes.float(), channels, temperature=10000.0).flatten(-2)


def rows_first(boxes_cxcywh: Tensor) -> Tensor:
    """Return (y, x, w, h) of (x, y, w, h), the order in which DAB-DETR and its heirs encode boxes."""
    return torch.cat([boxes_cxcywh[..., 1:2], boxes_cxcywh[..., :1], boxes_cxcywh[..., 2:]], dim=-1)


def _share(length: int, used: Tensor, offset: float) -> Tensor:
    """Return (B, length): where cells lie in images of `used` (B,) cells."""
    cells = torch.arange(length, device=used.device, dtype=torch.float32) + (1 + offset)
    return cells / (used[:, None] + 1e-6)


def _waves(shares: Tensor, channels: int, temperature: float) -> Tensor:
    """Return (..., channels): sine and cosine in turn of `shares` (...) of a full turn, at falling frequencies."""
    channel_indices = torch.arange(0, channels, 2, device=shares.device, dtype=torch.float32)
    angles = (shares * (2 * math.pi))[..., None] / temperature ** (channel_indices / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
