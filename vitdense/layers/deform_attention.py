"""Deformable attention with its linear layers: sampling offsets, attention weights, value and output."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from vitdense.ops.deform_attn.function import Grids, deform_attn


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention of Deformable DETR (Zhu et al. 2021, section 4.1 and appendix A.2).

    Every query predicts, for each head and level, `num_points` sampling points as offsets from its reference, and one
    weight for each; the weights of a head sum to one over levels and points. Initial offsets point in one direction per
    head, point i at a distance of i + 1 cells, with equal weights. `value_ratio` is the width of values relative to
    `dim` (ViT-Adapter uses 0.5 or less). Parameters carry the names of published checkpoints.
    """

    def __init__(
        self, dim: int, *, num_heads: int = 8, num_levels: int = 4, num_points: int = 4, value_ratio: float = 1.0
    ) -> None:
        super().__init__()
        value_dim = int(dim * value_ratio)
        if value_dim < 1 or value_dim % num_heads:
            raise ValueError(f'{value_dim} channels ({dim} x {value_ratio}) do not divide among {num_heads} heads')
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f'num_heads={self.num_heads}, num_levels={self.num_levels}, num_points={self.num_points}'

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all weights as in the paper."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the square of one cell around
        steps = torch.arange(1, self.num_points + 1)[:, None] * directions[:, None, None]  # (heads, 1, points, 2)
        self.sampling_offsets.bias.copy_(steps.expand(-1, self.num_levels, -1, -1).flatten())

    def forward(
        self, queries: Tensor, references: Tensor, values: Tensor, grids: Grids, valid: Tensor | None = None
    ) -> Tensor:
        """Return (B, Q, dim): the attention of `queries` (B, Q, dim) to `values` (B, S, dim).

        `values` are the cells of all levels, row by row, of sizes `grids` [(h, w), ...]. `references` (B, Q, levels, 2)
        are (x, y), or (B, Q, levels, 4) boxes cxcywh, in [0, 1] of the whole map of each level (with its padding:
        multiply by the valid ratios before). Offsets count cells of the level around a point; around a box they count
        half boxes divided by `num_points`. Cells that are not `valid` (B, S) are zero. Raises ValueError for
        shapes that do not fit.
        """
        if len(grids) != self.num_levels:
            raise ValueError(f'{len(grids)} grids for a layer of {self.num_levels} levels')
        value = self.value_proj(values)
        if valid is not None:
            value = value.masked_fill(~valid[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, D) -> (B, S, heads, D / heads)
        shape = (self.num_heads, self.num_levels, self.num_points)
        dtype = torch.promote_types(references.dtype, torch.float32)  # half a cell is lost in bfloat16 from cell 256 on
        offsets = self.sampling_offsets(queries).to(dtype).unflatten(-1, (*shape, 2))
        locations = self._locations(offsets, references.to(dtype)[:, :, None, :, None], grids)
        weights = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1, dtype=dtype)
        return self.output_proj(deform_attn(value, grids, locations, weights.unflatten(-1, shape[1:])))

    def _locations(self, offsets: Tensor, references: Tensor, grids: Grids) -> Tensor:
        """Return sampling points, of the shape of `offsets`; references are (B, Q, 1, levels, 1, 2 or 4)."""
        if references.shape[-1] == 2:
            return references + offsets / _level_sizes(grids, references)
        if references.shape[-1] == 4:
            return references[..., :2] + offsets * (0.5 / self.num_points) * references[..., 2:]
        raise ValueError(f'references are points (2 numbers) or boxes (4), not {references.shape[-1]} numbers')


def _level_sizes(grids: Grids, like: Tensor) -> Tensor:
    """Return (levels, 1, 2) width and height of each level, with the type and device of `like`."""
    if torch.compiler.is_exporting():  # sides may be symbolic, which a tensor of a list would fix
        return torch.stack([like.new_ones(()) * side for grid in grids for side in reversed(grid)]).view(-1, 1, 2)
    plain = type(like) is Tensor and not torch.compiler.is_compiling()  # traced tensors must not be cached
    if plain and like.device.type == 'cuda':
        return _cached_level_sizes(tuple(grids), like.dtype, like.device)  # a copy to the device would synchronise
    return like.new_tensor([(width, height) for height, width in grids])[:, None]


@lru_cache(maxsize=64)
def _cached_level_sizes(grids: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is cached
        return torch.tensor([(width, height) for height, width in grids], dtype=dtype, device=device)[:, None]
