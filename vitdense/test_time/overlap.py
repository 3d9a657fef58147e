"""Positions of overlapping windows on an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Corner = tuple[int, int]  # (top, left)


class WindowGrid(NamedTuple):
    """Windows of `size` (H, W), one at every combination of `tops` and `lefts`."""

    size: tuple[int, int]
    tops: list[int]
    lefts: list[int]

    @property
    def corners(self) -> list[Corner]:
        return [(top, left) for top in self.tops for left in self.lefts]

    def axis_counts(self, input_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (H,) and (W,) int64: how many windows lie over each row and each column of cells of `input_size`."""
        rows, columns = (
            torch.tensor([sum(start <= cell < start + side for start in starts) for cell in range(whole)])
            for starts, side, whole in zip(self[1:], self.size, input_size, strict=True)
        )
        return rows, columns

    def counts(self, input_size: Sequence[int]) -> Tensor:
        """Return (H, W) int64: how many windows lie over each cell of `input_size`, a product of the two axes."""
        rows, columns = self.axis_counts(input_size)
        return rows[:, None] * columns
