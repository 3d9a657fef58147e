"""Injector and extractor of ViT-Adapter: deformable attention between ViT patches and spatial features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from vitdense.layers.deform_attention import DeformableAttention
from vitdense.ops.padding import map_extents, rectangles, zero_padding

NORM_EPS = 1e-6  # of the published layer norms


class Cells(NamedTuple):
    """Geometry of tokens (B, S, C): the cells of one or more maps, concatenated, row by row."""

    grids: tuple[tuple[int, int], ...]  # (h, w) of each map
    strides: tuple[float, ...]  # pixels from cell to cell
    extents: tuple[Tensor | None, ...]  # (B, 2) rows and columns that belong to each image; None: all of them
    valid: Tensor | None = None  # (B, S) bool, False = padding; None: nothing is padding

    @classmethod
    def of(cls, grids: Sequence[tuple[int, int]], strides: Sequence[float], valid: Tensor | None) -> Cells:
        """Return the cells of maps of sizes `grids`; `valid` is (B, H, W) bool in pixels, as in `Batch`."""
        extents = tuple(map_extents(valid, stride, grid) for grid, stride in zip(grids, strides, strict=True))
        inside = None
        if valid is not None:
            inside = torch.cat(
                [rectangles(extent, grid).flatten(1) for extent, grid in zip(extents, grids, strict=True)], dim=1
            )
        return cls(tuple(grids), tuple(strides), extents, inside)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Return the maps (B, C, h, w) of `tokens` (B, S, C), without copying."""
        parts = tokens.split([height * width for height, width in self.grids], dim=1)
        return [part.unflatten(1, grid).permute(0, 3, 1, 2) for part, grid in zip(parts, self.grids, strict=True)]

    def reference_points(self, others: Cells, like: Tensor) -> Tensor:
        """Return (B, S, L, 2): the centres of all cells, (x, y) in [0, 1] of each map of `others`.

        Maps share the top left corner; where a stride does not divide the image they end at different pixels, so the
        normalised coordinates of a pixel differ between them. `like` (B, ...) gives device and batch.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        middles = []
        for (height, width), stride in zip(self.grids, self.strides, strict=True):
            rows, columns = (
                (torch.arange(length, device=like.device, dtype=dtype) + 0.5) * stride for length in (height, width)
            )
            pair = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)
            middles.append(pair.flatten(0, 1))  # (h, w, 2) -> (h * w, 2)
        pixels = torch.cat(middles)
        shares = [
            torch.stack([pixels[:, 0] / (stride * width), pixels[:, 1] / (stride * height)], dim=-1)
            for (height, width), stride in zip(others.grids, others.strides, strict=True)
        ]
        return torch.stack(shares, dim=1).expand(like.shape[0], -1, -1, -1)


class Injector(nn.Module):
    """Equation 1 of ViT-Adapter (Chen et al. 2023): patches attend to spatial features, scaled by `gamma`.

    `gamma` begins at `gamma_init`; at 0 the features of the ViT are initially those of its pretraining.
    """

    def __init__(
        self, dim: int, *, num_levels: int, num_heads: int, num_points: int, value_ratio: float, gamma_init: float
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = DeformableAttention(
            dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points, value_ratio=value_ratio
        )
        self.gamma = nn.Parameter(torch.full((dim,), gamma_init))

    def forward(self, patches: Tensor, reference_points: Tensor, spatial: Tensor, cells: Cells) -> Tensor:
        """Return `patches` (B, N, C) updated from `spatial` (B, S, C) with geometry `cells`.

        `reference_points` (B, N, levels, 2) are those of the patches in the maps of `cells`.
        """
        read = self.attn(self.query_norm(patches), reference_points, self.feat_norm(spatial), cells.grids, cells.valid)
        return patches + self.gamma * read


class Extractor(nn.Module):
    """Equations 2 and 3 of ViT-Adapter (Chen et al. 2023): spatial features attend to patches, then a ConvFFN.

    `ffn_ratio` is the width of the ConvFFN relative to `dim` (None: no ConvFFN); `drop_path` the probability that
    it is skipped for an image.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_points: int,
        value_ratio: float,
        ffn_ratio: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = DeformableAttention(
            dim, num_heads=num_heads, num_levels=1, num_points=num_points, value_ratio=value_ratio
        )
        self.ffn = None
        if ffn_ratio is not None:
            self.ffn = ConvFFN(dim, int(dim * ffn_ratio))
            self.ffn_norm = nn.LayerNorm(dim, eps=NORM_EPS)
            self.drop_path = DropPath(drop_path)

    def forward(
        self, spatial: Tensor, cells: Cells, reference_points: Tensor, patches: Tensor, patch_cells: Cells
    ) -> Tensor:
        """Return `spatial` (B, S, C) with geometry `cells`, updated from `patches` (B, N, C).

        `reference_points` (B, S, 1, 2) are those of the spatial features in the map of `patch_cells`.
        """
        queries, values = self.query_norm(spatial), self.feat_norm(patches)
        spatial = spatial + self.attn(queries, reference_points, values, patch_cells.grids, patch_cells.valid)
        if self.ffn is None:
            return spatial
        return spatial + self.drop_path(self.ffn(self.ffn_norm(spatial), cells))


class ConvFFN(nn.Module):
    """A feed-forward layer with a 3x3 depthwise convolution, shared by all levels, before its GELU (PVTv2)."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.dwconv = nn.Conv2d(ffn_dim, ffn_dim, kernel_size=3, padding=1, groups=ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, dim)
        self.apply(init_weights)

    def forward(self, x: Tensor, cells: Cells) -> Tensor:
        """Map tokens `x` (B, S, C) with geometry `cells` to the same shape."""
        maps = cells.split(self.fc1(x))
        mixed = [
            self.dwconv(zero_padding(level, extent)).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h * w, C)
            for level, extent in zip(maps, cells.extents, strict=True)
        ]
        return self.fc2(functional.gelu(torch.cat(mixed, dim=1)))


def init_weights(module: nn.Module) -> None:
    """Initialise linear layers and convolutions as published; deformable attention is not changed."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
