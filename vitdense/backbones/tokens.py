"""Tokens of a Vision Transformer with their grid, rotary positions, padding mask and windows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.backbones.windows import Layout, WindowPartition, not_rotated


class Tokens(NamedTuple):
    """Input and output of the blocks: prefix tokens (class, registers), inserted tokens and patches, in this order."""

    x: Tensor  # (B, N, C); cut into windows: (B * windows, L, C), the same order of tokens in each window
    grid: tuple[int, int]  # (h, w); the last h * w tokens are the patches, row by row
    rope: Tensor | None = None  # rotation of all but the prefix: (n, 2d) or (B, 1, n, 2d); mixed: a leading (depth,)
    mask: Tensor | None = None  # (B, 1, 1, N) bool, False = padding; None: nothing is padding
    grids: tuple[tuple[int, int], ...] | None = None  # (h, w) of each image where some are padded
    layout: Layout | None = None  # how x is cut into windows; rope and mask stay those of the whole

    @property
    def num_special_tokens(self) -> int:
        """Number of tokens before the patches: prefix and inserted tokens."""
        return self.x.shape[1] - self.grid[0] * self.grid[1] if self.layout is None else self.layout.num_special_tokens


def cut(tokens: Tokens, windows: WindowPartition, layout: Layout | None = None) -> Tokens:
    """Return whole tokens cut into windows, by the `layout` of such tokens where it is known. Tokens before the patches
    are repeated into every window.
    """
    if layout is None:
        batch = tokens.x.shape[0]
        layout = windows.layout(
            tokens.grid, tokens.grids, tokens.num_special_tokens, batch=batch, device=tokens.x.device
        )
    return tokens._replace(x=layout.cut(tokens.x), layout=layout)


def whole(tokens: Tokens) -> Tokens:
    """Return tokens put together again, if they were cut; tokens before the patches are averaged over the windows."""
    if tokens.layout is None:
        return tokens
    return tokens._replace(x=tokens.layout.join(tokens.x), layout=None)


def insert(tokens: Tokens, queries: Tensor, *, prefix: int) -> Tokens:
    """Return tokens with `queries` (B, Q, C) behind the first `prefix` ones; they are not rotated and never masked."""
    x = torch.cat([tokens.x[:, :prefix], queries, tokens.x[:, prefix:]], dim=1)
    rope, mask, count = tokens.rope, tokens.mask, queries.shape[1]
    if rope is not None:
        rope = not_rotated(rope, count)
    if mask is not None:
        mask = torch.cat([mask[..., :prefix], mask.new_ones(*mask.shape[:-1], count), mask[..., prefix:]], dim=-1)
    return tokens._replace(x=x, rope=rope, mask=mask)


def keep(tokens: Tokens, rows: Tensor, *, prefix: int, mixed: bool) -> Tokens:
    """Return the patches `rows` (B, K) of each image, in that order, behind the tokens before the patches.

    `prefix` tokens are not rotated; a `mixed` rotation leads with the blocks.
    """
    ahead = tokens.num_special_tokens
    before = torch.arange(ahead, device=rows.device).expand(len(rows), -1)
    index = torch.cat([before, rows + ahead], dim=1)  # (B, N')
    x = torch.take_along_dim(tokens.x, index[..., None], dim=1)
    rope, mask = tokens.rope, tokens.mask
    if rope is not None:
        if rope.ndim == 2 + 2 * mixed:  # one for all images
            rope = rope.unsqueeze(1) if mixed else rope[None, None]
        turned = (index[:, prefix:] - prefix)[:, None, :, None]  # (B, 1, n, 1)
        rope = torch.take_along_dim(rope, turned[None] if mixed else turned, dim=-2)
    if mask is not None:
        mask = torch.take_along_dim(mask, index[:, None, None], dim=-1)
    return Tokens(x, (1, rows.shape[1]), rope, mask)


def own_grids(
    valid: Tensor | None, grid: tuple[int, int], patch: int
) -> tuple[Tensor | None, tuple[tuple[int, int], ...] | None]:
    """Return the cells that hold image pixels (B, h, w) bool, and the grid of each image; Nones without padding."""
    if valid is None:
        return None, None
    cells = valid[:, ::patch, ::patch]  # padding is right and below: the first pixel decides
    sides = torch.stack([cells[:, :, 0].sum(1), cells[:, 0].sum(1)], dim=1)
    grids = tuple((height, width) for height, width in sides.tolist())
    return (None, None) if all(own == grid for own in grids) else (cells, grids)


def spread(table: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Pad the table (..., h * w, C) of a small grid at the bottom and right to a larger one."""
    table = table.unflatten(-2, own)  # (..., h * w, C) -> (..., h, w, C)
    table = functional.pad(table, (0, 0, 0, grid[1] - own[1], 0, grid[0] - own[0]))
    return table.flatten(-3, -2)  # -> (..., H * W, C)


def join_masks(attn_mask: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Return the attention mask: `attn_mask`, bool or added to scores, with the padding of `mask` masked."""
    if attn_mask is None or mask is None:
        return mask if attn_mask is None else attn_mask
    if attn_mask.dtype == torch.bool:
        return attn_mask & mask
    return attn_mask.masked_fill(~mask, float('-inf'))


def without_padding(maps: Tensor, tokens: Tokens) -> Tensor:
    """Return maps (B, C, h, w) that are zero in cells that are all padding."""
    if tokens.mask is None:
        return maps
    cells = tokens.mask[:, 0, :, -maps.shape[-2] * maps.shape[-1] :].unflatten(-1, tokens.grid)  # (B, 1, h, w)
    return maps * cells
