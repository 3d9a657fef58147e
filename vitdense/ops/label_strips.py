"""Labels of a large picture from the logits of its windows, without ever holding the logits of its plane.

What is kept are the logits of windows as the network gave them, on its own grid, until the rows that they cover are
labelled. A strip of rows that no later window sees is resized, added up and compared a few classes at a time. The sums
are those of `Tiler(accumulate='pixels')`, in the same order, so the labels are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.ops.overlap import Windows
from vitdense.ops.upsample import Taps, axis_taps, labels_of, refuse_non_finite, resized_plane, running_argmax
from vitdense.types import Meta

BLOCK_NUMBERS = 1 << 25  # logits of a strip that are added up together: 128 MiB
MOST_CLASSES = 16  # that are added up together


class LabelStrips:
    """The labels (H, W) of one picture of `meta`, whose `plane` (H, W) is covered by `windows`.

    `add` takes the windows row by row, as `Windows.corners` has them; after the last one `labels` is whole. The answer
    is that of: resize the logits of each window to its pixels, average where windows overlap, crop to `meta.size`,
    resize to `meta.orig_size`, argmax.
    """

    def __init__(self, windows: Windows, plane: tuple[int, int], meta: Meta) -> None:
        self.windows, self.plane = windows, plane
        self.resized = tuple(meta.size) != tuple(meta.orig_size)
        self.crop, self.out = tuple(meta.size), tuple(meta.orig_size)
        self.rows, self.columns = (
            axis_taps(*axis) if self.resized else _same(axis[2])
            for axis in zip(plane, plane, self.crop, self.out, strict=True)
        )
        self.counts = windows.counts(plane)
        self.seen: dict[tuple[int, int], tuple[Tensor, tuple[int, int]]] = {}
        self.done = 0  # rows of the answer
        self.labels: Tensor | None = None

    def add(self, logits: Tensor, size: tuple[int, int], corner: tuple[int, int]) -> None:
        """Take the logits (K, h, w) of the window at `corner`, which cover `size` (H, W) pixels, padding included."""
        logits = logits.detach().float()
        refuse_non_finite(logits)
        self.seen[corner] = logits.clone(), size  # a view would keep the logits of its whole batch
        if self.labels is None:
            self.labels = torch.empty(self.out, dtype=labels_of(len(logits), logits.device).dtype, device=logits.device)
        top, left = corner
        if left == self.windows.lefts[-1]:
            later = [start for start in self.windows.tops if start > top]
            self._label(later[0] if later else self.plane[0])

    def _label(self, stop: int) -> None:
        """Label the rows of the answer that read nothing from row `stop` on, and forget what is done."""
        last = self.rows.cells.amax(1)
        end = int((last < stop).sum())
        while self.done < end:
            top = int(self.rows.cells[self.done].min())
            # a strip of few rows, so that one class of it fits into the block
            fits = int((last[self.done : end] < top + max(BLOCK_NUMBERS // self.plane[1], 2)).sum())
            rows = slice(self.done, self.done + max(fits, 1))
            self.labels[rows] = self._strip(Taps(self.rows.cells[rows], self.rows.weights[rows]))
            self.done = rows.stop
        needed = int(self.rows.cells[self.done].min()) if self.done < len(last) else self.plane[0]
        self.seen = {corner: kept for corner, kept in self.seen.items() if corner[0] + self.windows.size[0] > needed}

    def _strip(self, rows: Taps) -> Tensor:
        """Return the labels of some rows of the answer."""
        top, bottom = int(rows.cells.min()), int(rows.cells.max()) + 1
        planes = self._planes(top, bottom)
        device = self.labels.device
        if self.resized:
            there = Taps((rows.cells - top).to(device), rows.weights.to(device))
            columns = Taps(*(part.to(device) for part in self.columns))
            planes = (resized_plane(plane, there, columns) for plane in planes)
        else:
            planes = (plane[:, : self.crop[1]] for plane in planes)
        num_classes = len(next(iter(self.seen.values()))[0])
        return running_argmax(planes, labels_of(num_classes, device))

    def _planes(self, top: int, bottom: int) -> Iterator[Tensor]:
        """Yield the mean logits (bottom - top, W) of every class in some rows of the plane."""
        num_classes = len(next(iter(self.seen.values()))[0])
        width, counts = self.plane[1], self.counts[top:bottom].to(self.labels.device)
        step = min(max(BLOCK_NUMBERS // ((bottom - top) * width), 1), MOST_CLASSES)
        for start in range(0, num_classes, step):
            block = slice(start, min(start + step, num_classes))
            total = torch.zeros(block.stop - start, bottom - top, width, device=self.labels.device)
            for corner, (logits, size) in self.seen.items():
                self._add_window(total, top, corner, logits[None, block], size)
            yield from total.div_(counts)

    def _add_window(
        self, total: Tensor, top: int, corner: tuple[int, int], logits: Tensor, size: tuple[int, int]
    ) -> None:
        """Add those rows of a window that lie in `total`, which begins at row `top` of the plane."""
        height, width = self.windows.size
        first, last = max(top, corner[0]), min(top + total.shape[1], corner[0] + height)
        if first >= last:
            return
        full = functional.interpolate(logits, size, mode='bilinear', align_corners=False)[0]
        part = full[:, first - corner[0] : last - corner[0], :width]
        total[:, first - top : last - top, corner[1] : corner[1] + width].add_(part)


def _same(length: int) -> Taps:
    """Return the map of an axis to itself."""
    return Taps(torch.arange(length)[:, None], torch.ones(length, 1))
