"""Sliding-window inference: run a network on overlapping windows of an image and average its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check, check_choice, check_ranges
from vitdense.errors import ConfigError
from vitdense.ops.packed_masks import PackedMasks
from vitdense.ops.padding import image_sizes
from vitdense.test_time.merged_objects import join_windows
from vitdense.test_time.overlap import Corner, WindowGrid
from vitdense.test_time.streamed_labels import GridLogits, LabelStrips, MaskLogits
from vitdense.types import ClassOutputs, Instances, LabelOutputs, MaskScores, Meta, ObjectOutputs, Outputs, PixelOutputs

PACKED_FROM = 2**24  # pixels of an image from which masks of objects are packed at once
Network = Callable[[Tensor, Tensor | None], dict[str, Outputs]]


class Tiler:
    """Sliding windows of `size` pixels every `stride` pixels; where windows overlap, their logits are averaged.

    Called as `tiler(network, imgs, valid)` with a network `(imgs, valid) -> {name: Outputs}`; it returns what the
    network would, for whole images. A side of an image that is shorter than the window is taken whole. Images
    of different sizes in one batch are taken one by one, each without its padding.

    * `batch`: how many windows of each image go through the network together.
    * `even`: spread the windows evenly from border to border. By default they lie at multiples of the stride and the
      last one is moved back to end at the border, as in mmsegmentation.
    * `accumulate`: 'pixels' resizes the logits of a window to its pixels and averages there. 'logits' averages on the
      network's own grid, which takes little memory for large images; its windows are made of whole cells of
      `divisor` pixels (size rounded up, positions rounded down). 'labels' gives the labels that 'pixels' leads to, as
      `LabelOutputs`, and keeps little more than the network's own logits of two rows of windows: for images whose
      logits do not fit into memory. It needs the `metas` of the images.
    * `divisor`: the network takes multiples of it. With 'pixels', a window that is none (512 pixels for patch 14) is
      padded with zeros at the right and the bottom, and the logits of the padding are dropped.

    * `max_objects`: the best objects of each window that are kept; None: all that its queries give.

    Logits of `ClassOutputs` are averaged over the windows. Objects (`ObjectOutputs`) are joined across the borders of
    windows, see `join_windows`. Other outputs have no average: ConfigError.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        stride: int | tuple[int, int],
        *,
        batch: int = 1,
        accumulate: Literal['pixels', 'logits', 'labels'] = 'pixels',
        even: bool = False,
        divisor: int = 1,
        max_objects: int | None = None,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.stride = (stride, stride) if isinstance(stride, int) else tuple(stride)
        self.batch = batch
        self.accumulate = accumulate
        self.even = even
        self.divisor = divisor
        self.max_objects = max_objects
        _check(self)

    @property
    def streams(self) -> bool:
        """Whether the outputs are labels, for which the `metas` are needed."""
        return self.accumulate == 'labels'

    @torch.no_grad()
    def __call__(
        self, network: Network, imgs: Tensor, valid: Tensor | None = None, *, metas: Sequence[Meta] = ()
    ) -> dict[str, Outputs]:
        """Return the blended outputs for `imgs (B, 3, H, W)`; `PixelOutputs.input_size` is (H, W). No gradients."""
        if valid is not None:

            def alone(row: int, img: Tensor) -> dict[str, Outputs]:
                return self(network, img, metas=metas[row : row + 1])

            return one_by_one(alone, imgs, valid, divisor=self.divisor)
        if self.streams and len(metas) != len(imgs):
            raise ValueError(f'labels of {len(imgs)} images need as many metas, got {len(metas)}')
        windows = self.windows(tuple(imgs.shape[-2:]))
        sums: dict[str, _Sum] = {}
        for start in range(0, len(windows.corners), self.batch):
            corners = windows.corners[start : start + self.batch]
            crops = torch.cat([_crop(imgs, corner, windows.size) for corner in corners])
            # less than a cell of padding, so that no whole cell of the grid is padding
            crops = functional.pad(crops, (0, -windows.size[1] % self.divisor, 0, -windows.size[0] % self.divisor))
            for name, output in network(crops, None).items():
                if name not in sums:
                    sums[name] = self._sum(name, output, windows, imgs, metas)
                sums[name].add(output, corners)
        return {name: total.mean() for name, total in sums.items()}

    def windows(self, input_size: tuple[int, int]) -> WindowGrid:
        """Return the windows of an image of `input_size` (H, W) pixels."""
        cell = self.divisor if self.accumulate == 'logits' else 1
        if input_size[0] % cell or input_size[1] % cell:
            raise ValueError(f'an image of {input_size} pixels is not padded to multiples of {cell}')
        size = tuple(min(-(-side // cell) * cell, whole) for side, whole in zip(self.size, input_size, strict=True))
        tops, lefts = (
            [start // cell * cell for start in _starts(whole, side, stride, even=self.even)]
            for whole, side, stride in zip(input_size, size, self.stride, strict=True)
        )
        return WindowGrid(size, tops, lefts)

    def _sum(self, name: str, output: Outputs, windows: WindowGrid, imgs: Tensor, metas: Sequence[Meta]) -> _Sum:
        input_size = tuple(imgs.shape[-2:])
        if isinstance(output, ClassOutputs):
            return _ClassSum(len(windows.corners))
        if isinstance(output, ObjectOutputs):
            sizes = [tuple(meta.orig_size) for meta in metas] if self.streams else []
            packed = input_size[0] * input_size[1] > PACKED_FROM and sizes == [tuple(m.unpadded_size) for m in metas]
            return _ObjectSum(windows, input_size, sizes if packed else [], most=self.max_objects)
        if not isinstance(output, PixelOutputs | MaskScores if self.streams else PixelOutputs):
            refuse_outputs(name, output, where='model.tiler', fix='leave the tiler out and test on whole images')
        if self.streams:
            return _LabelSum([LabelStrips(windows, input_size, meta) for meta in metas])
        cells = windows.size if self.accumulate == 'pixels' else tuple(output.logits.shape[-2:])
        return _PixelSum(output.logits, windows, cells, input_size=input_size)


class _PixelSum:
    """Adds up logits of windows on one grid that covers the image; a window is `cells` (h, w) of it."""

    def __init__(
        self, logits: Tensor, windows: WindowGrid, cells: tuple[int, int], input_size: tuple[int, int]
    ) -> None:
        tops, lefts = (
            [_scaled(start, *ratio) for start in starts]
            for starts, ratio in zip((windows.tops, windows.lefts), zip(cells, windows.size, strict=True), strict=True)
        )
        self.windows = WindowGrid(cells, tops, lefts)
        self.corners = dict(zip(windows.corners, self.windows.corners, strict=True))  # from pixels to cells
        self.input_size = input_size
        self.resized = tuple(cells) == tuple(windows.size)
        self.total: Tensor | None = None
        self.shape = [_scaled(*side) for side in zip(input_size, cells, windows.size, strict=True)]

    def add(self, output: PixelOutputs, corners: list[Corner]) -> None:
        for logits, corner in zip(output.logits.chunk(len(corners)), corners, strict=True):
            if self.total is None:
                self.total = logits.new_zeros(*logits.shape[:2], *self.shape, dtype=torch.float32)
            if self.resized:
                logits = functional.interpolate(logits.float(), output.input_size, mode='bilinear', align_corners=False)
                logits = _crop(logits, (0, 0), self.windows.size)
            _crop(self.total, self.corners[corner], self.windows.size).add_(logits)

    def mean(self) -> PixelOutputs:
        """Return the mean, divided in place."""
        return PixelOutputs(self.total.div_(self.windows.counts(self.shape).to(self.total.device)), self.input_size)


class _ClassSum:
    """Adds up logits of windows."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.total: Tensor | float = 0.0

    def add(self, output: ClassOutputs, corners: list[Corner]) -> None:
        self.total = self.total + output.logits.float().unflatten(0, (len(corners), -1)).sum(0)

    def mean(self) -> ClassOutputs:
        return ClassOutputs(self.total / self.number)


class _LabelSum:
    """Labels the rows that no later window covers, for every image."""

    def __init__(self, strips: Sequence[LabelStrips]) -> None:
        self.strips = strips

    def add(self, output: PixelOutputs | MaskScores, corners: list[Corner]) -> None:
        if isinstance(output, MaskScores):
            windows = [MaskLogits(*pair, output.input_size) for pair in zip(*output[:2], strict=True)]
        else:
            windows = [GridLogits(logits.float(), output.input_size) for logits in output.logits]
        for window, (corner, strips) in zip(windows, product(corners, self.strips), strict=True):
            strips.add(window, corner)

    def mean(self) -> LabelOutputs:
        return LabelOutputs(tuple(strips.labels for strips in self.strips))


class _ObjectSum:
    """Collects the objects of windows, at most the `most` best of each; masks are packed where images have `sizes`."""

    def __init__(
        self, windows: WindowGrid, input_size: tuple[int, int], sizes: Sequence[tuple[int, int]], *, most: int | None
    ) -> None:
        self.windows, self.input_size = windows, input_size
        self.sizes, self.most = sizes, most
        self.collected: list[Instances] = []  # of the images of a batch, window by window

    def add(self, output: ObjectOutputs, corners: list[Corner]) -> None:
        for objects in output.objects:
            objects = objects.select(slice(self.most))
            if self.sizes and objects.masks is not None:
                objects = objects._replace(masks=PackedMasks.of(objects.masks))
            self.collected.append(objects)

    def mean(self) -> ObjectOutputs:
        number = len(self.collected) // len(self.windows.corners)
        joined = [
            join_windows(
                self.collected[row::number], self.windows.corners, self.windows.size, self.input_size, packed_size=size
            )
            for row, size in zip(range(number), self.sizes or [None] * number, strict=True)
        ]
        return ObjectOutputs(tuple(joined))


_Sum = _PixelSum | _ClassSum | _LabelSum | _ObjectSum


def one_by_one(
    run: Callable[[int, Tensor], dict[str, Outputs]], imgs: Tensor, valid: Tensor, *, divisor: int
) -> dict[str, Outputs]:
    """Run each image alone, without its padding, and put the outputs together as those of one padded batch.

    `valid (B, H, W)` is True on images, which lie at the top left; `run` gets the row of each and the image, with
    sides rounded up to `divisor`. Beyond an image the logits repeat its edge, so that they can be resized.
    """
    input_size = tuple(imgs.shape[-2:])
    sizes = [
        [min(-(-side // divisor) * divisor, whole) for side, whole in zip(size, input_size, strict=True)]
        for size in image_sizes(valid).tolist()
    ]
    outputs = [
        run(row, img[None, :, : size[0], : size[1]]) for row, (img, size) in enumerate(zip(imgs, sizes, strict=True))
    ]
    return {name: _joined([output[name] for output in outputs], input_size) for name in outputs[0]}


def _joined(outputs: list[Outputs], input_size: tuple[int, int]) -> Outputs:
    if isinstance(outputs[0], ClassOutputs):
        return ClassOutputs(torch.cat([output.logits for output in outputs]))
    if isinstance(outputs[0], LabelOutputs | ObjectOutputs):
        return type(outputs[0])(tuple(each for output in outputs for each in output[0]))
    padded = []
    for logits, size, _ in outputs:
        height, width = (
            _scaled(whole, cells, side) - cells
            for whole, cells, side in zip(input_size, logits.shape[-2:], size, strict=True)
        )
        padded.append(functional.pad(logits, (0, width, 0, height), mode='replicate'))
    return PixelOutputs(torch.cat(padded), input_size)


def refuse_outputs(name: str, output: Outputs, *, where: str, fix: str) -> None:
    """Raise the ConfigError about outputs that have no average."""
    raise ConfigError(
        f"the outputs of '{name}' are {type(output).__name__}, which have no average",
        where=where,
        why='only logits of pixels and of whole images can be averaged',
        fix=fix,
    )


def _starts(whole: int, window: int, stride: int, *, even: bool) -> list[int]:
    """Return where windows begin on one axis."""
    number = -(-(whole - window) // stride) + 1
    if even and number > 1:
        return [index * (whole - window) // (number - 1) for index in range(number)]
    return [min(index * stride, whole - window) for index in range(number)]


def _crop(x: Tensor, corner: Corner, size: tuple[int, int]) -> Tensor:
    return x[..., corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]


def _scaled(pixels: int, cells: int, window: int) -> int:
    """Return how many cells `pixels` are, where `window` pixels are `cells` cells."""
    why = f'windows must begin and images must end between cells of {window / cells:g} pixels, not at pixel {pixels}'
    fix = "write accumulate='pixels', or choose sides that are multiples of the cells"
    check(pixels * cells % window == 0, 'Tiler.accumulate', 'logits', why, fix)
    return pixels * cells // window


def _check(tiler: Tiler) -> None:
    pairs_fit = len(tiler.size) == len(tiler.stride) == 2
    covered = pairs_fit and all(0 < step <= side for step, side in zip(tiler.stride, tiler.size, strict=True))
    why = f'windows of {tiler.size} do not cover an image: sizes are one number or (H, W), and strides leave gaps'
    fix = f'choose a stride between 1 and the size, such as {tuple(side * 2 // 3 for side in tiler.size)}'
    check(covered, 'Tiler.stride', tiler.stride, why, fix)
    check_choice('Tiler.accumulate', tiler.accumulate, ('pixels', 'logits', 'labels'))
    check_ranges(tiler, ('batch', 'divisor', *(['max_objects'] if tiler.max_objects is not None else [])), 1)
