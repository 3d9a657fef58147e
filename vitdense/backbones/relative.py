"""Relative position bias of attention, as in BEiT and mmsegmentation's MAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.arguments import check


class RelativeBias(nn.Module):
    """The relative position bias of one block (BEiT, https://arxiv.org/abs/2106.08254, section 2.5), zero at first.

    `table` ((2h - 1)(2w - 1) + 3, heads) holds a number for each offset in the `grid` (h, w), query minus key, row by
    row; then those of a query before the patches and a key among them, of the reverse, and of both before. All tokens
    before the patches share these. Other grids get the offsets resampled bilinearly, as transformers does it.
    """

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.grid = tuple(grid)
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.table = nn.Parameter(torch.zeros(offsets + 3, num_heads))

    def forward(
        self, grid: tuple[int, int], grids: Sequence[tuple[int, int]] | None, num_special_tokens: int
    ) -> Tensor:
        """Return the bias of the attention scores, (1 or B, heads, N, N), for patches of `grid` behind
        `num_special_tokens` tokens.

        Where `grids` are given, each image has the offsets of its own; those of padding are undefined.
        """
        if grids is None:
            table = self._offsets(grid)[None]
        else:
            pads = {own: (grid[1] - own[1],) * 2 + (grid[0] - own[0],) * 2 for own in set(grids)}
            tables = {own: functional.pad(self._offsets(own), pad) for own, pad in pads.items()}
            table = torch.stack([tables[own] for own in grids])
        keys = table.unfold(2, grid[0], 1).unfold(3, grid[1], 1).flip(4, 5)  # of query (y, x): (b, heads, y, x, h, w)
        patches = keys.flatten(2, 3).flatten(3, 4)  # -> (b, heads, h * w, h * w)
        if not num_special_tokens:
            return patches
        batch, heads, cells = patches.shape[:3]
        down, up, among = self.table[-3:, None, :, None, None].expand(-1, batch, -1, -1, -1)  # 3 x (b, heads, 1, 1)
        lead = torch.cat(
            [
                among.expand(-1, -1, num_special_tokens, num_special_tokens),
                down.expand(-1, -1, num_special_tokens, cells),
            ],
            dim=3,
        )
        return torch.cat([lead, torch.cat([up.expand(-1, -1, cells, num_special_tokens), patches], dim=3)], dim=2)

    def _offsets(self, grid: tuple[int, int]) -> Tensor:
        """Return the bias of each offset, (heads, 2h - 1, 2w - 1)."""
        table = self.table[:-3].T.unflatten(1, [2 * side - 1 for side in self.grid])
        if tuple(grid) == self.grid:
            return table
        return functional.interpolate(table[None], size=[2 * side - 1 for side in grid], mode='bilinear')[0]


def add_bias(model: nn.Module, *, windowed: bool) -> None:
    """Give every block of a timm ViT a `RelativeBias`. Raises ConfigError where blocks attend within windows."""
    why = 'its table holds the offsets of whole images, and the ViT has windows'
    check(not windowed, 'ViT.relative_bias', True, why, 'leave one of them out')
    for block in model.blocks:
        block.relative_bias = RelativeBias(model.patch_embed.grid_size, getattr(block, 'attn', block).num_heads)


def run_biased(
    block: nn.Module,
    x: Tensor,
    *,
    grid: tuple[int, int],
    grids: Sequence[tuple[int, int]] | None,
    attn_mask: Tensor | None,
    **named: Any,
) -> Tensor:
    """Run a block with its bias, computed here so that checkpointing recomputes it too."""
    bias = block.relative_bias(grid, grids, x.shape[1] - grid[0] * grid[1])
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        bias = bias + attn_mask
    elif attn_mask is not None:
        bias = bias.masked_fill(~attn_mask, float('-inf'))
    device = x.device.type  # a mask must have the type in which attention is computed
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return block(x, attn_mask=bias.to(dtype), **named)
