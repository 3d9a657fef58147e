"""Masks of objects as run lengths, unpacked where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vitdense.ops.masks import boxes_of_runs, masks_of_runs, run_of_part, runs_of_masks, unpack_runs


class PackedMasks:
    """N masks (H, W) as pycocotools' run lengths: kilobytes, where an array of 100 masks of a photo has a gigabyte.

    Indexing by a number unpacks one mask, (H, W) bool; by rows, a slice or a bool array it gives fewer packed masks.
    `numpy.asarray` unpacks all.
    """

    def __init__(self, runs: list[dict[str, Any]], size: tuple[int, int]) -> None:
        self.runs = runs
        self.size = size

    @classmethod
    def of(cls, masks: Tensor | PackedMasks) -> PackedMasks:
        """Return (N, H, W) bool masks packed."""
        if isinstance(masks, PackedMasks):
            return masks
        height, width = masks.shape[-2:]
        return cls([run for mask in masks for run in runs_of_masks(mask[None])], (height, width))

    @classmethod
    def of_parts(cls, parts: Sequence[tuple[Tensor, tuple[int, int]]], size: tuple[int, int]) -> PackedMasks:
        """Return masks in an image of `size`, each False but for a part (h, w) whose upper left corner is known."""
        return cls([run_of_part(mask.cpu().numpy(), corner, size) for mask, corner in parts], size)

    def every(self, step: int) -> np.ndarray:
        """Return every `step`-th row and column of all masks, (N, H / step, W / step) bool."""
        height, width = self.size
        sampled = np.zeros((len(self), -(-height // step), -(-width // step)), bool)
        for mask, run, (left, top, w, h) in zip(sampled, self.runs, boxes_of_runs(self.runs).astype(int), strict=True):
            rows, columns = (
                slice(-(-start // step), -(-(start + side) // step)) for start, side in ((top, h), (left, w))
            )
            y, x = (np.arange(part.start, part.stop) * step for part in (rows, columns))
            ends = unpack_runs(run['counts']).cumsum()
            mask[rows, columns] = np.searchsorted(ends, x * height + y[:, None], side='right') % 2 == 1
        return sampled

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            return masks_of_runs([self.runs[index]], self.size)[0]
        rows = np.arange(len(self.runs))[index]
        return PackedMasks([self.runs[row] for row in rows.tolist()], self.size)

    def tensor(self) -> Tensor:
        """Return (N, H, W) bool."""
        return masks_of_runs(self.runs, self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tensor().numpy(), dtype)
