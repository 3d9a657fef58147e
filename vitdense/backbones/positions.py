"""Position embeddings of a timm ViT for any grid: absolute tables resampled, rotary ones computed, cached if fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitdense.backbones.tokens import spread
from vitdense.ops.resample import filter_weights

_CACHE_SIZE = 16  # tables in the cache of a ViT with fixed positions


class Positions:
    """Absolute and rotary positions of `model` for a grid (h, w), or for `grids` of each image padded to a common grid.

    With `fixed`, training never changes them, and they are cached.
    """

    def __init__(self, model: nn.Module, *, fixed: bool) -> None:
        self.model = model
        self.fixed = fixed
        self.mixed: bool = getattr(model, 'rope_mixed', False)  # a rotation of its own for each block
        self.num_prefix = 0 if model.no_embed_class else model.num_prefix_tokens  # prefix tokens that have a position
        self._tables: dict[tuple, Tensor] = {}

    def absolute(self, grid: tuple[int, int], grids: Sequence[tuple[int, int]] | None) -> tuple[Tensor | None, Tensor]:
        """Return positions of the prefix (1, P, C), if they have any, and of the patches (1 or B, h * w, C)."""
        count = self.num_prefix
        if grids is None:
            table = self._table('absolute', grid)  # (1, count + h * w, C)
            return table[:, :count] if count else None, table[:, count:]
        tables = {own: self._table('absolute', own) for own in set(grids)}
        shared = tables[grids[0]][:, :count] if count else None  # no grid changes it
        return shared, torch.stack([spread(tables[own][0, count:], own, grid) for own in grids])

    def rotations(self, grid: tuple[int, int], grids: Sequence[tuple[int, int]] | None) -> Tensor | None:
        """Return the rotations of the patches as `Tokens.rope` holds them; None for a ViT without rotary positions."""
        if getattr(self.model, 'rope', None) is None:
            return None
        if grids is None:
            return self._table('rotary', grid)
        tables = {own: self._table('rotary', own) for own in set(grids)}
        laid = [spread(tables[own], own, grid) for own in grids]
        return torch.stack(laid, dim=1) if self.mixed else torch.stack(laid)[:, None]

    def _table(self, kind: Literal['absolute', 'rotary'], grid: tuple[int, int]) -> Tensor:
        """Return the positions of one grid, from the cache where they are fixed."""
        if torch.compiler.is_compiling():
            return self._make_table(kind, grid)
        source = self.model.pos_embed if kind == 'absolute' else next(self.model.rope.parameters(), None)
        anchor = self.model.patch_embed.proj.weight if source is None else source
        # not cached: trained weights (EMA swaps them without a new version), and inference tensors, which training
        # cannot use
        changes = source is not None and not self.fixed
        augmented = kind == 'rotary' and self.model.rope.training and getattr(self.model.rope, 'aug_active', False)
        if changes or augmented or anchor.is_inference():
            return self._make_table(kind, grid)
        key = (kind, grid, anchor.device, anchor.dtype, anchor.data_ptr(), anchor._version)
        table = self._tables.get(key)
        if table is None:
            with torch.inference_mode(False), torch.no_grad():
                table = self._make_table(kind, grid)
            for oldest in list(self._tables)[: max(0, len(self._tables) + 1 - _CACHE_SIZE)]:
                self._tables.pop(oldest, None)  # another thread may have been faster
            self._tables[key] = table
        return table

    def _make_table(self, kind: Literal['absolute', 'rotary'], grid: tuple[int, int]) -> Tensor:
        if kind == 'rotary':
            return self.model.rope.get_embed(shape=grid)
        if torch.compiler.is_exporting():
            return self._exported_table(grid)
        return resample_abs_pos_embed(
            self.model.pos_embed,
            new_size=grid,
            old_size=self.model.patch_embed.grid_size,
            num_prefix_tokens=self.num_prefix,
        )

    def _exported_table(self, grid: tuple[int, int]) -> Tensor:
        """Return the absolute positions of one grid by matrix products: not every runtime of exported graphs has an
        antialiased cubic resize.
        """
        table, old = self.model.pos_embed, self.model.patch_embed.grid_size
        if all(isinstance(side, int) for side in grid) and tuple(grid) == tuple(old):  # not of free sizes
            return table
        prefix, patches = table[0, : self.num_prefix], table[0, self.num_prefix :]
        rows, columns = (filter_weights(*sides, like=table, cubic=True) for sides in zip(grid, old, strict=True))
        resized = rows @ patches.view(old[0], -1)  # (H, W, C) -> (h, W, C)
        resized = columns @ resized.view(grid[0], old[1], -1)  # (h, W, C) -> (h, w, C)
        return torch.cat([prefix, resized.flatten(0, 1)])[None]
