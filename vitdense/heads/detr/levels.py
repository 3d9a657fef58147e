"""The maps of an adapter as one sequence of tokens from several levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vitdense.arguments import check_choice
from vitdense.ops.padding import map_extents, rectangles, whole_map, zero_padding
from vitdense.types import Features


class FeatureLevels(NamedTuple):
    """Tokens of L maps, fine to coarse, each row by row; S is the number of all their cells."""

    maps: tuple[Tensor, ...]  # (B, C, h_i, w_i)
    tokens: Tensor  # (B, S, C)
    extents: tuple[Tensor | None, ...]  # (B, 2) rows and columns of cells of each image; None: all of them
    valid: Tensor | None  # (B, S) bool, False = padding; None: nothing is padding

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) of each level."""
        return [(x.shape[-2], x.shape[-1]) for x in self.maps]

    def used(self) -> Tensor:
        """Return (B or 1, L, 2) int64: the (columns, rows) of cells that are image, as points are written."""
        used = [whole_map(x) if extent is None else extent for x, extent in zip(self.maps, self.extents, strict=True)]
        return torch.stack(used, dim=1).flip(-1)

    def ratios(self) -> Tensor:
        """Return (B or 1, L, 2) float32: the valid share of each level along (x, y)."""
        grids = torch.cat([whole_map(x) for x in self.maps]).flip(-1)  # (L, 2)
        return self.used().float() / grids

    def centers(self) -> Tensor:
        """Return (B or 1, S, 2) float32: the middles of all cells as (x, y) in [0, 1] of each image."""
        used = self.used().unbind(1)
        return torch.cat([_centers(x) / size[:, None] for x, size in zip(self.maps, used, strict=True)], dim=1)


class LevelProjection(nn.Module):
    """Bring maps to `channels` and add coarser levels until there are `num_levels`.

    A map passes a 1x1 convolution; each further level is a 3x3 convolution of stride 2, the first of the coarsest map
    as the adapter gives it, the next of the level before (Deformable-DETR, Zhu et al. 2021, appendix A.4). A norm
    follows: 'group' (32 groups, of the image's own cells), 'layer', or 'none', which takes maps that have `channels`
    channels as they are.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[float],
        channels: int,
        num_levels: int,
        *,
        norm: Literal['group', 'layer', 'none'] = 'group',
    ) -> None:
        super().__init__()
        norms = {'group': MaskedGroupNorm, 'layer': MaskedLayerNorm}
        check_choice('LevelProjection.norm', norm, (*norms, 'none'))
        if num_levels < len(in_channels):
            raise ValueError(f'num_levels={num_levels} is less than the {len(in_channels)} maps of the adapter')
        num_extra = num_levels - len(in_channels)
        if norm == 'none' and (num_extra or set(in_channels) != {channels}):
            raise ValueError(
                f"norm='none' takes maps as they are: it needs {num_levels} maps of {channels} channels from the "
                f'adapter, which gives {tuple(in_channels)}'
            )
        self.strides = tuple(strides) + tuple(strides[-1] * 2 ** (step + 1) for step in range(num_extra))
        self.num_inputs = len(in_channels)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        if norm != 'none':
            widths = [in_channels[-1], *[channels] * (num_extra - 1)] if num_extra else []
            self.convs.extend(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
            self.convs.extend(nn.Conv2d(width, channels, kernel_size=3, stride=2, padding=1) for width in widths)
            self.norms.extend(norms[norm](channels) for _ in self.convs)
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Features) -> FeatureLevels:
        """Return the levels of `features.maps`."""
        maps, extents = [], []
        for index, stride in enumerate(self.strides):
            source = maps[-1] if index > self.num_inputs else features.maps[min(index, self.num_inputs - 1)]
            x, extent = self._level(index, source, stride, features)
            maps.append(x)
            extents.append(extent)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, C, h, w) -> (B, S, C)
        valid = None
        if features.valid is not None:
            inside = [rectangles(extent, x.shape[-2:]).flatten(1) for x, extent in zip(maps, extents, strict=True)]
            valid = torch.cat(inside, dim=1)
        return FeatureLevels(tuple(maps), tokens, tuple(extents), valid)

    def _level(self, index: int, source: Tensor, stride: float, features: Features) -> tuple[Tensor, Tensor | None]:
        """Return the map of a level and its extents, made of the map `source`."""
        if not self.convs:
            return source, map_extents(features.valid, stride, tuple(source.shape[-2:]))
        if index >= self.num_inputs:
            before = map_extents(features.valid, stride / 2, tuple(source.shape[-2:]))
            source = zero_padding(source, before)
        x = self.convs[index](source)
        extent = map_extents(features.valid, stride, tuple(x.shape[-2:]))
        return self.norms[index](x, extent), extent


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018) whose mean and variance are those of each image's own cells."""

    def __init__(self, channels: int, *, num_groups: int = 32) -> None:
        super().__init__(math.gcd(num_groups, channels), channels)

    def forward(self, x: Tensor, extents: Tensor | None = None) -> Tensor:
        """Normalise `x` (B, C, h, w); `extents` (B, 2) are the cells of each image. Padding is zero afterwards."""
        if extents is None:
            # the module would refuse a single cell of one channel, which a small image leaves of a coarse level
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        inside = rectangles(extents, tuple(x.shape[-2:]))[:, None, None]  # (B, 1, 1, h, w)
        groups = x.float().unflatten(1, (self.num_groups, -1))  # (B, G, C / G, h, w)
        count = (extents[:, 0] * extents[:, 1] * groups.shape[2])[:, None, None, None, None]
        mean = groups.masked_fill(~inside, 0.0).sum((2, 3, 4), keepdim=True) / count
        centered = (groups - mean).masked_fill(~inside, 0.0)
        variance = centered.square().sum((2, 3, 4), keepdim=True) / count
        normed = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
        scaled = normed * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.masked_fill(~inside[:, 0], 0.0).to(x.dtype)


class MaskedLayerNorm(LayerNorm2d):
    """Layer normalisation of every cell; its statistics are those of one cell, so it needs no mask."""

    def forward(self, x: Tensor, extents: Tensor | None = None) -> Tensor:
        return super().forward(x)


def _centers(x: Tensor) -> Tensor:
    """Return (1, h * w, 2) float32: the middles of the cells of `x` (B, C, h, w) as (x, y), counted in cells."""
    height, width = x.shape[-2:]
    rows, columns = (torch.arange(length, device=x.device, dtype=torch.float32) + 0.5 for length in (height, width))
    points = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)
    return points.flatten(0, 1)[None]  # (h, w, 2) -> (1, h * w, 2)
