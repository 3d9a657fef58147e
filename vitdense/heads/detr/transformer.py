"""Encoder and decoder layers of DETR and of Deformable-DETR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.heads.detr.attention import AddNorm, Attention, FeedForward
from vitdense.heads.detr.levels import FeatureLevels
from vitdense.heads.detr.position import sine_positions
from vitdense.layers.deform_attention import DeformableAttention


class EncoderLayer(nn.Module):
    """Self-attention of cells and a feed-forward network (DETR, Carion et al. 2020, section 3.2 and figure 10)."""

    def __init__(self, dim: int, *, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout=dropout)
        self.add1 = AddNorm(dim, dropout=dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout=dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map `x` (B, S, C); `mask` (B, 1, 1, S), True = may be attended to."""
        placed = x + positions
        return self.feed_forward(self.add1(x, self.self_attn(placed, placed, x, mask)))


class DecoderLayer(nn.Module):
    """Self-attention of queries, the cross-attention `cross_attn`, and a feed-forward network (DETR, figure 10)."""

    def __init__(self, dim: int, cross_attn: nn.Module, *, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout=dropout)
        self.add1 = AddNorm(dim, dropout=dropout)
        self.cross_attn = cross_attn
        self.add2 = AddNorm(dim, dropout=dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout=dropout)

    def forward(
        self, x: Tensor, positions: Tensor, memory: Sequence[Any], *, mask: Tensor | None = None, groups: int = 1
    ) -> Tensor:
        """Map queries `x` (B, Q, C); `cross_attn` is called with the placed queries and `memory`.

        A query attends to the queries where `mask` (B or 1, 1, Q, Q) is True; without mask, to its own of `groups`
        groups of Q / groups queries.
        """
        x = self.add1(x, self._among_queries(x, x + positions, mask, groups))
        x = self.add2(x, self.cross_attn(x + positions, *memory))
        return self.feed_forward(x)

    def _among_queries(self, x: Tensor, placed: Tensor, mask: Tensor | None, groups: int) -> Tensor:
        if mask is not None or groups == 1:
            return self.self_attn(placed, placed, x, mask)
        placed, x = (rows.unflatten(1, (groups, -1)).flatten(0, 1) for rows in (placed, x))  # (B * groups, n, C)
        return self.self_attn(placed, placed, x).unflatten(0, (-1, groups)).flatten(1, 2)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention of the cells of all levels, and a feed-forward network (Zhu et al. 2021, 4.1)."""

    def __init__(
        self, dim: int, *, num_levels: int, num_heads: int, num_points: int, ffn_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points)
        self.add1 = AddNorm(dim, dropout=dropout)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout=dropout)

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, levels: FeatureLevels) -> Tensor:
        """Map `x` (B, S, C), the tokens of `levels`, whose middles are `references` (B, S, L, 2)."""
        update = self.self_attn(x + positions, references, x, levels.grids, levels.valid)
        return self.feed_forward(self.add1(x, update))


class DeformableEncoder(nn.Module):
    """A stack of `num_layers` deformable encoder layers over maps with sine positions and a learned level embedding.

    `layer` are the arguments of each; `temperature` and `offset` are those of `sine_positions`.
    """

    def __init__(
        self, dim: int, num_layers: int, *, layer: dict[str, Any], num_levels: int, temperature: float, offset: float
    ) -> None:
        super().__init__()
        self.temperature, self.offset = temperature, offset
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))
        self.layers = nn.ModuleList(DeformableEncoderLayer(dim, **layer) for _ in range(num_layers))

    def forward(self, levels: FeatureLevels) -> FeatureLevels:
        """Return `levels` with other tokens; its maps stay what they were."""
        x = levels.tokens
        positions = self._positions(levels)
        references = levels.centers()[:, :, None] * levels.ratios()[:, None]  # (B or 1, S, L, 2)
        references = references.expand(x.shape[0], -1, -1, -1)
        for layer in self.layers:
            x = layer(x, positions, references, levels)
        return levels._replace(tokens=x)

    def _positions(self, levels: FeatureLevels) -> Tensor:
        """Return (B or 1, S, C): the positions that are added to the queries of attention."""
        channels = self.level_embed.shape[1]
        positions = [
            sine_positions(x, channels, extent, temperature=self.temperature, offset=self.offset) + embedding
            for x, extent, embedding in zip(levels.maps, levels.extents, self.level_embed, strict=True)
        ]
        return torch.cat(positions, dim=1)
