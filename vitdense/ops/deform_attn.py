"""Multi-scale deformable attention: every query reads a few places of every level of a pyramid, and weighs them.

Equation 3 of Deformable DETR (Zhu et al. 2021) after the linear layers. The maps of all levels lie behind one another
in `value`; a place between cells is read bilinearly, with cell centres at half integers (`align_corners=False`), and
everything outside a map is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Path = Literal['reference']
Grids = Sequence[tuple[int, int]]


def deform_attn(value: Tensor, grids: Grids, locations: Tensor, weights: Tensor, *, path: Path | None = None) -> Tensor:
    """Return (B, Q, heads * C): for every query and head the weighted sum of what it reads.

    `value` (B, S, heads, C) holds the maps of all levels, row by row, fine to coarse or in any other order that `grids`
    [(h, w), ...] names; S is the sum of h * w. `locations` (B, Q, heads, levels, points, 2) are (x, y) in [0, 1] of
    the plane of their level; what lies outside reads zeros. `weights` (B, Q, heads, levels, points) are used as given.

    Places and sums are computed in float32 at least; the answer has the type of `value`. `path` forces one way of
    computing it (for tests and timing); all ways give the same answer and the same gradients. Raises ValueError for
    shapes that do not fit together.
    """
    grids = tuple((int(height), int(width)) for height, width in grids)
    _refuse_misfits(value, grids, locations, weights)
    dtype = torch.promote_types(value.dtype, torch.float32)
    sums = sample_grids(value.to(dtype), grids, locations.to(dtype), weights.to(dtype))
    return sums.to(value.dtype)


def sample_grids(value: Tensor, grids: Grids, locations: Tensor, weights: Tensor) -> Tensor:
    """The plain way, on any device: one `grid_sample` per level. Arguments and answer as those of `deform_attn`."""
    batch, _, heads, _ = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B, S, heads, C) -> (B*heads, C, S)
    places = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # -> (B*heads, Q, levels, points, 2)
    shares = weights.transpose(1, 2).flatten(0, 1)[:, None]  # -> (B*heads, 1, Q, levels, points)
    planes = maps.split([height * width for height, width in grids], dim=2)
    sums = maps.new_zeros(())
    for level, (plane, grid) in enumerate(zip(planes, grids, strict=True)):
        samples = functional.grid_sample(
            plane.unflatten(2, grid), places[:, :, level], mode='bilinear', padding_mode='zeros', align_corners=False
        )  # (B*heads, C, Q, points)
        sums = sums + (samples * shares[..., level, :]).sum(-1)
    return sums.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)  # (B*heads, C, Q) -> (B, Q, heads*C)


def _refuse_misfits(value: Tensor, grids: Grids, locations: Tensor, weights: Tensor) -> None:
    cells = sum(height * width for height, width in grids)
    if not grids or min(min(grid) for grid in grids) < 1 or value.ndim != 4 or value.shape[1] != cells:
        raise ValueError(
            f'value {tuple(value.shape)} is not (B, {cells}, heads, C), the cells of the levels {list(grids)}'
        )
    expected = (value.shape[0], locations.shape[1], value.shape[2], len(grids), *locations.shape[4:5], 2)
    if locations.ndim != 6 or tuple(locations.shape) != expected:
        raise ValueError(
            f'locations {tuple(locations.shape)} are not (B, Q, heads, levels, points, 2) with batch {value.shape[0]}, '
            f'{value.shape[2]} heads and {len(grids)} levels'
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f'weights {tuple(weights.shape)} do not fit locations {tuple(locations.shape)}')
