"""Labels of a large image from the logits of its windows, without ever holding all logits of the image.

What is kept are the logits of windows as the network gave them, on its own grid (of queries with masks: their classes
and masks), until the rows that they cover are labelled. A strip of rows that no later window covers is resized, summed
and compared a few classes at a time. The sums are those of `Tiler(accumulate='pixels')`, in the same order, so the
labels are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.ops.mask_labels import class_scores, resize_axis
from vitdense.ops.upsample import Taps, axis_taps, labels_of, refuse_non_finite, resize_map, running_argmax
from vitdense.test_time.overlap import WindowGrid
from vitdense.types import Meta

BLOCK_NUMBERS = 1 << 25  # logits of a strip that are added up together: 128 MiB
MAX_CLASSES = 16  # that are added up together


class GridLogits(NamedTuple):
    """Logits of a window on the network's own grid."""

    logits: Tensor  # (K, h, w) float32
    input_size: tuple[int, int]  # (H, W) of the pixels that they cover, padding included

    @property
    def num_classes(self) -> int:
        return len(self.logits)

    fewest, most = 1, MAX_CLASSES  # classes computed together: every call resizes the whole window

    def rows(self, classes: slice, first: int, last: int) -> Tensor:
        """Return the logits (k, last - first, W) of some classes in some rows."""
        full = functional.interpolate(
            self.logits[None, classes], self.input_size, mode='bilinear', align_corners=False
        )[0]
        return full[:, first:last]


class MaskLogits(NamedTuple):
    """Scores of a window as a product: those of `MaskScores`, of one image."""

    probs: Tensor  # (Q, K) float32
    masks: Tensor  # (Q, h, w) float32
    input_size: tuple[int, int]  # (H, W) of the padded input that the masks cover

    @property
    def num_classes(self) -> int:
        return self.probs.shape[1]

    fewest = most = property(lambda self: self.num_classes)  # together: every call resizes all masks, in its rows only

    def rows(self, classes: slice, first: int, last: int) -> Tensor:
        """Return the scores (k, last - first, W) of some classes in some rows."""
        rows, columns = (axis_taps(*axis) for axis in zip(self.masks.shape[-2:], *[self.input_size] * 3, strict=True))
        cells, weights = rows.cells[first:last], rows.weights[first:last]
        top, bottom = int(cells.min()), int(cells.max()) + 1
        wide = resize_axis(self.masks[:, top:bottom], columns.cells, columns.weights, axis=2)
        return class_scores(self.probs[:, classes], resize_axis(wide, cells - top, weights, axis=1))


class LabelStrips:
    """The labels (H, W) of one image of `meta`, whose `input_size` (H, W) is covered by `windows`.

    `add` takes the windows row by row, as `WindowGrid.corners` has them; after the last one `labels` is whole. They
    equal: resize the logits of each window to its pixels, average where windows overlap, crop to
    `meta.unpadded_size`, resize to `meta.orig_size`, argmax.
    """

    def __init__(self, windows: WindowGrid, input_size: tuple[int, int], meta: Meta) -> None:
        self.windows, self.input_size = windows, input_size
        self.crop, self.out = tuple(meta.unpadded_size), tuple(meta.orig_size)
        self.resized = self.crop != self.out
        self.rows, self.columns = (
            axis_taps(*axis) if self.resized else _same(axis[2])
            for axis in zip(input_size, input_size, self.crop, self.out, strict=True)
        )
        self.counts = windows.axis_counts(input_size)
        self.pending: dict[tuple[int, int], GridLogits | MaskLogits] = {}
        self.done = 0  # labelled rows of the output
        self.labels: Tensor | None = None

    def add(self, window: GridLogits | MaskLogits, corner: tuple[int, int]) -> None:
        """Add the logits of the window at `corner`. Raises NumericsError for what is not finite."""
        # a view would keep the logits of its whole batch
        window = window._make(part.detach().clone() if isinstance(part, Tensor) else part for part in window)
        for part in window[:-1]:
            refuse_non_finite(part)
        self.pending[corner] = window
        if self.labels is None:
            device = window[0].device
            self.labels = torch.empty(self.out, dtype=labels_of(window.num_classes, device).dtype, device=device)
        top, left = corner
        if left == self.windows.lefts[-1]:
            later = [start for start in self.windows.tops if start > top]
            self._label(later[0] if later else self.input_size[0])

    def _label(self, stop: int) -> None:
        """Label the rows of the output that read no row from `stop` on, and drop windows that are done with."""
        last = self.rows.cells.amax(1)
        end = int((last < stop).sum())
        while self.done < end:
            top = int(self.rows.cells[self.done].min())
            fits = int((last[self.done : end] < top + self._height()).sum())
            rows = slice(self.done, self.done + max(fits, 1))
            self.labels[rows] = self._strip(Taps(self.rows.cells[rows], self.rows.weights[rows]))
            self.done = rows.stop
        needed = int(self.rows.cells[self.done].min()) if self.done < len(last) else self.input_size[0]
        self.pending = {
            corner: kept for corner, kept in self.pending.items() if corner[0] + self.windows.size[0] > needed
        }

    def _height(self) -> int:
        """Return how many rows of the image a strip has, so that the fewest classes of it fit into the block."""
        window = next(iter(self.pending.values()))
        return max(BLOCK_NUMBERS // (self.input_size[1] * window.fewest), 2)

    def _strip(self, rows: Taps) -> Tensor:
        """Return the labels of some rows of the output."""
        top, bottom = int(rows.cells.min()), int(rows.cells.max()) + 1
        maps = self._class_maps(top, bottom)
        device = self.labels.device
        if self.resized:
            there = Taps((rows.cells - top).to(device), rows.weights.to(device))
            columns = Taps(*(part.to(device) for part in self.columns))
            maps = (resize_map(each, there, columns) for each in maps)
        else:
            maps = (each[:, : self.crop[1]] for each in maps)
        num_classes = next(iter(self.pending.values())).num_classes
        return running_argmax(maps, labels_of(num_classes, device))

    def _class_maps(self, top: int, bottom: int) -> Iterator[Tensor]:
        """Yield the mean logits (bottom - top, W) of every class in some rows of the image."""
        window = next(iter(self.pending.values()))
        num_classes = window.num_classes
        width, (rows, columns) = self.input_size[1], self.counts
        counts = (rows[top:bottom, None] * columns).to(self.labels.device)
        step = min(max(BLOCK_NUMBERS // ((bottom - top) * width), window.fewest), window.most)
        for start in range(0, num_classes, step):
            block = slice(start, min(start + step, num_classes))
            total = torch.zeros(block.stop - start, bottom - top, width, device=self.labels.device)
            for corner, window in self.pending.items():
                self._add_window(total, top, corner, window, block)
            yield from total.div_(counts)

    def _add_window(
        self, total: Tensor, top: int, corner: tuple[int, int], window: GridLogits | MaskLogits, classes: slice
    ) -> None:
        """Add those rows of a window that lie in `total`, which begins at row `top` of the image."""
        height, width = self.windows.size
        first, last = max(top, corner[0]), min(top + total.shape[1], corner[0] + height)
        if first < last:
            part = window.rows(classes, first - corner[0], last - corner[0])[..., :width]
            total[:, first - top : last - top, corner[1] : corner[1] + width].add_(part)


def _same(length: int) -> Taps:
    """Return the map of an axis to itself."""
    return Taps(torch.arange(length)[:, None], torch.ones(length, 1))
