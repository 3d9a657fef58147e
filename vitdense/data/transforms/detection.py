"""Multi-scale resizing and cropping for detectors: DETR's recipe and large-scale jitter."""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.arguments import check, span, within
from vitdense.data.transforms import geometry
from vitdense.data.transforms.geometry import draw_window, fit
from vitdense.data.transforms.random import bernoulli, choice, integer, uniform
from vitdense.types import IGNORE, Sample, Target

DETR_SIZES = tuple(range(480, 801, 32))
MAX_ATTEMPTS = 50


class MultiScaleCrop:
    """Resize the short side to one of `sizes`, the long side up to `max_size`, keeping the aspect; often after a crop.

    With the given `probability` a window is cut before: from the image with a short side of one of `before`, with
    sides drawn from the range `crop` (or those of the image, where it is smaller). Objects outside leave the target.
    This is DETR's recipe (Carion et al. 2020, https://arxiv.org/abs/2005.12872, section 4: training sizes 480 ... 800
    up to 1333, a crop with probability 0.5), with one resize in place of two. `square` gives up the aspect: both sides
    become the size (RF-DETR's recipe).
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int] = DETR_SIZES,
        max_size: int = 1333,
        probability: float = 0.5,
        before: Sequence[int] = (400, 500, 600),
        crop: tuple[int, int] = (384, 600),
        square: bool = False,
    ) -> None:
        where = 'MultiScaleCrop'
        self.square = square
        self.sizes = [int(within(size, 1, max_size, f'{where}.sizes')) for size in _several(sizes, f'{where}.sizes')]
        self.before = [int(within(size, 1, 65535, f'{where}.before')) for size in _several(before, f'{where}.before')]
        self.max_size = max_size
        self.probability = within(probability, 0, 1, f'{where}.probability')
        self.crop = tuple(int(side) for side in span(crop, f'{where}.crop'))

    def __call__(self, sample: Sample) -> Sample:
        if bernoulli(self.probability):
            sample, shape = self._cut(sample)
        else:
            shape = sample.img.shape[-2:]
        size = choice(self.sizes)
        return geometry.resize(sample, (size, size) if self.square else fit(shape, self.max_size, size))

    def _cut(self, sample: Sample) -> tuple[Sample, tuple[int, int]]:
        """Return a random window of the image, and the size (H, W) that it has where the window was drawn."""
        source = sample.img.shape[-2:]
        between = fit(source, float('inf'), choice(self.before))
        low, high = self.crop
        sides = [min(low, side) + integer(max(min(high, side) - low, 0) + 1) for side in between]
        window, shape = draw_window(source, between, sides)
        return geometry.crop(sample, *window), shape


class LargeScaleJitter:
    """Resize to fit a square of `size` times a random `ratio`, then cut a random window of at most `size`.

    Ghiasi et al. 2021 (https://arxiv.org/abs/2012.07177, section 3.1; 0.1 ... 2.0 as in ViTDet). With `pad` the image
    becomes a square, `fill` gray at the right and the bottom, that is part of the image; without, it keeps its own
    size, and what a batch adds is known as padding. `require_labels` draws again, 50 draws at most, while a labelled
    image has no object and no labelled pixel left (EoMT, benchmark-vfm-ss).
    """

    def __init__(
        self,
        *,
        size: int = 1024,
        ratio: tuple[float, float] = (0.1, 2.0),
        pad: bool = True,
        fill: int = 128,
        require_labels: bool = False,
    ) -> None:
        self.size = int(within(size, 1, 65535, 'LargeScaleJitter.size'))
        self.ratio = span(ratio, 'LargeScaleJitter.ratio')
        self.pad = pad
        self.fill = int(within(fill, 0, 255, 'LargeScaleJitter.fill'))
        self.require_labels = require_labels

    def __call__(self, sample: Sample) -> Sample:
        jittered = self._jitter(sample)
        for _ in range(MAX_ATTEMPTS - 1 if self.require_labels else 0):
            if _is_labelled(jittered.target):
                break
            jittered = self._jitter(sample)
        return jittered

    def _jitter(self, sample: Sample) -> Sample:
        source, square = sample.img.shape[-2:], (self.size, self.size)
        resized = fit(source, self.size * uniform(*self.ratio), float('inf'))
        window, shape = draw_window(source, resized, square)
        sample = geometry.resize(geometry.crop(sample, *window), shape)
        return geometry.pad(sample, square, fill=self.fill) if self.pad else sample


def _is_labelled(target: Target) -> bool:
    """Return whether an object or a labelled pixel is left; True where the image has no labels at all."""
    known = [bool((target.semantic != IGNORE).any())] if target.semantic is not None else []
    if target.labels is not None:
        known.append(len(target.labels) > 0)
    return any(known) if known else True


def _several(values: Sequence[int], where: str) -> Sequence[int]:
    holds = not isinstance(values, str) and isinstance(values, Sequence) and len(values) > 0
    why, fix = 'one of several sizes is chosen for each image', 'write at least one size, such as (480, 640, 800)'
    check(holds, where, values, why, fix)
    return values
