"""Augmentation and test-time resizing of samples, on torchvision's tv_tensors.

Every class is a callable `Sample -> Sample`. torchvision's own v2 transforms (`v2.RandomGrayscale`, ...) can be used
in the same pipeline. All randomness comes from torch's global generator, which `SeededDataset` seeds for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional

from vitdense.arguments import pair, sides, span, within
from vitdense.data.dataset_protocols import MixingTransform, SampleSource
from vitdense.data.files.opening import UnreadableImage
from vitdense.data.transforms import geometry
from vitdense.data.transforms.random import bernoulli, integer, uniform
from vitdense.errors import ConfigError
from vitdense.registry import build
from vitdense.types import IGNORE, Sample

Transforms = Sequence[Callable | dict] | Mapping[str, Callable | dict]  # parts or their recipes, in order
MAX_ATTEMPTS = 20  # to read another image


class Pipeline:
    """Apply `transforms` in order, then set `meta.size` to the size that came out. In a dict, transforms have names.

    A `MixingTransform` reads other images of the data set, `source`, each through the steps before it; an unreadable
    one is replaced by another.

    A `RandomCrop` right after a `RandomResize` cuts the source first, at whole pixels, and resizes only what it has
    cut: the same windows up to a fraction of a source pixel, for less work.
    """

    def __init__(self, transforms: Transforms = ()) -> None:
        steps = transforms.values() if isinstance(transforms, Mapping) else transforms
        self.transforms = [build(transform) for transform in steps]
        for index, transform in enumerate(self.transforms):
            if not (callable(transform) or isinstance(transform, MixingTransform)):
                raise ConfigError(
                    f'{transform!r} is not a transform',
                    where=f'transforms[{index}]',
                    why='a transform is a callable that takes a Sample and returns one',
                    fix='write dict(type=RandomFlip, ...) or the object RandomFlip(...)',
                )
            if isinstance(transform, Pad) and index + 1 < len(self.transforms):
                raise ConfigError(
                    f'{type(self.transforms[index + 1]).__name__} follows Pad',
                    where=f'transforms[{index + 1}]',
                    why='what comes after would move or colour the padding, whose extent is stored in meta',
                    fix='make Pad the last transform',
                )
        self._steps = _fused(self.transforms)

    def __call__(self, sample: Sample, source: SampleSource | None = None) -> Sample:
        sample = self._run(len(self._steps), sample, source)
        height, width = sample.img.shape[-2:]
        return sample._replace(meta=sample.meta._replace(size=(height, width)))

    def _run(self, count: int, sample: Sample, source: SampleSource | None) -> Sample:
        """Return the sample after the first `count` steps."""
        for index, step in enumerate(self._steps[:count]):
            if isinstance(step, MixingTransform):
                sample = step.mix(sample, partial(self._other, index, source, step))
            else:
                sample = step(sample)
        return sample

    def _other(self, count: int, source: SampleSource | None, step: Any) -> Sample:
        """Return a random sample of `source` after the first `count` steps. Raises ConfigError without a source."""
        if source is None:
            raise ConfigError(
                f'{type(step).__name__} has no other images to mix',
                where='transforms',
                why='it reads other images of a training set; here is one image alone, or a data set without `read`',
                fix='use it for training only; vitdense.data.dataset_protocols has what a data set needs',
            )
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._run(count, source.read(integer(len(source))), source)
            except UnreadableImage:
                if attempt == MAX_ATTEMPTS - 1:
                    raise

    def __repr__(self) -> str:
        return f'Pipeline({self.transforms})'


def _fused(transforms: Sequence[Callable]) -> list[Callable]:
    steps: list[Callable] = []
    for transform in transforms:
        if steps and type(transform) is RandomCrop and type(steps[-1]) is RandomResize:
            steps[-1] = _ResizedCrop(steps[-1], transform)
        else:
            steps.append(transform)
    return steps


class _ResizedCrop:
    """`RandomResize` and `RandomCrop` in one step."""

    def __init__(self, resize: RandomResize, crop: RandomCrop) -> None:
        self.resize, self.crop = resize, crop

    def __call__(self, sample: Sample) -> Sample:
        size = self.resize.draw(sample.img.shape[-2:])
        return self.crop.cut(sample, size, antialias=self.resize.antialias)


class RandomResize:
    """Resize to fit inside `scale` times a random ratio, keeping the aspect.

    `scale` is (long side, short side) in pixels, and `ratio` the range of the uniform factor: with (2048, 512) and
    (0.5, 2.0) the short side becomes 256 to 1024 unless the long side would pass 1024 to 4096 (mmsegmentation's
    ADE20K recipe). `antialias=False` samples smaller images as OpenCV's bilinear resize does.
    """

    def __init__(
        self,
        *,
        scale: tuple[int, int] = (2048, 512),
        ratio: tuple[float, float] = (0.5, 2.0),
        antialias: bool = True,
    ) -> None:
        self.scale = pair(scale, 'RandomResize.scale', integer=True)
        self.ratio = span(ratio, 'RandomResize.ratio')
        self.antialias = antialias

    def __call__(self, sample: Sample) -> Sample:
        return geometry.resize(sample, self.draw(sample.img.shape[-2:]), antialias=self.antialias)

    def draw(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the new (H, W) of an image of `size`."""
        ratio = uniform(*self.ratio)
        return geometry.fit(size, max(self.scale) * ratio, min(self.scale) * ratio)


class RandomCrop:
    """Cut a random window of `size` (a side, or (H, W)); a smaller image is padded right and bottom.

    Padding is `fill` gray in the image and ignored in the semantic map; with `fill=None` a smaller image stays
    smaller, to be padded by `Pad` behind the transforms that follow. While one class covers
    `max_category_fraction` or more of the labelled pixels of the window, it is drawn again, 10 draws at most (1.0: any
    window will do; mmsegmentation's `cat_max_ratio`). `require_labels` draws again while nothing is labelled in it.
    """

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        max_category_fraction: float = 0.75,
        require_labels: bool = False,
        fill: int | None = 0,
    ) -> None:
        self.size = sides(size, 'RandomCrop.size')
        self.max_category_fraction = within(max_category_fraction, 0, 1, 'RandomCrop.max_category_fraction')
        self.require_labels = require_labels
        self.fill = None if fill is None else int(within(fill, 0, 255, 'RandomCrop.fill'))

    def __call__(self, sample: Sample) -> Sample:
        return self.cut(sample, sample.img.shape[-2:])

    def cut(self, sample: Sample, size: Sequence[int], *, antialias: bool = True) -> Sample:
        """Return a random window of the image as it would be after a resize to `size` (H, W)."""
        semantic = sample.target.semantic
        chooses = semantic is not None and (self.max_category_fraction < 1 or self.require_labels)
        for _ in range(10):
            window, shape = geometry.draw_window(sample.img.shape[-2:], size, self.size)
            if not chooses or self._accepts(semantic, window):
                break
        sample = geometry.resize(geometry.crop(sample, *window), shape, antialias=antialias)
        return sample if self.fill is None else geometry.pad(sample, self.size, fill=self.fill)

    def _accepts(self, semantic: Tensor, window: tuple[int, ...]) -> bool:
        top, left, height, width = window
        # every second row and column is enough to estimate the class shares
        labels = semantic.as_subclass(Tensor).numpy()[top : top + height : 2, left : left + width : 2]
        counts = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256]).ravel()[:IGNORE]
        total = counts.sum()
        if total == 0:
            return False
        return self.max_category_fraction >= 1 or counts.max() < self.max_category_fraction * total


class Pad:
    """Pad at the right and the bottom up to `size` (a side, or (H, W)); the last transform of a pipeline.

    The padding is part of the network input and is not masked. It is `fill` gray before normalisation, or with
    `after_normalisation` zero behind it, as mmsegmentation pads. Labels ignore it; predictions are cut to the
    image before they are resized to the original size. A larger image stays as it is.
    """

    def __init__(self, *, size: int | tuple[int, int], fill: int = 0, after_normalisation: bool = False) -> None:
        self.size = sides(size, 'Pad.size')
        self.fill = int(within(fill, 0, 255, 'Pad.fill'))
        self.after_normalisation = after_normalisation

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample.img.shape[-2:]
        if height >= self.size[0] and width >= self.size[1]:
            return sample
        padded = geometry.pad(sample, self.size, fill=self.fill)
        meta = padded.meta._replace(image_size=(height, width), zero_padding=self.after_normalisation)
        return padded._replace(meta=meta)


class RandomFlip:
    """Mirror left and right with the given probability."""

    def __init__(self, *, probability: float = 0.5) -> None:
        self.probability = within(probability, 0, 1, 'RandomFlip.probability')

    def __call__(self, sample: Sample) -> Sample:
        return geometry.flip(sample) if bernoulli(self.probability) else sample


class PhotometricDistortion:
    """Change brightness, contrast, saturation and hue, each with probability 0.5 (SSD, arXiv:1512.02325, section 2.2).

    `brightness` is the largest shift in gray levels; `contrast` and `saturation` are ranges of a factor (contrast
    multiplies the gray levels, and comes before or after the colour changes by a coin toss); `hue` is the largest
    turn of the colour circle in OpenCV's units, of which the circle has 180. The defaults are mmsegmentation's;
    `hue=9` is the turn of benchmark-vfm-ss. All in uint8.
    """

    def __init__(
        self,
        *,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18,
    ) -> None:
        self.brightness = within(brightness, 0, 255, 'PhotometricDistortion.brightness')
        self.contrast = span(contrast, 'PhotometricDistortion.contrast')
        self.saturation = span(saturation, 'PhotometricDistortion.saturation')
        self.hue = within(hue, 0, 90, 'PhotometricDistortion.hue')

    def __call__(self, sample: Sample) -> Sample:
        shift = uniform(-self.brightness, self.brightness) if bernoulli(0.5) else 0.0
        contrast = uniform(*self.contrast) if bernoulli(0.5) else 1.0
        contrast_first = bernoulli(0.5)
        saturation = uniform(*self.saturation) if bernoulli(0.5) else 1.0
        turn = uniform(-self.hue, self.hue) if bernoulli(0.5) else 0.0

        array = geometry.as_array(sample.img)
        if shift:
            array = cv2.add(array, (round(shift),) * 4)  # saturates, as every step does
        if contrast != 1 and contrast_first:
            array = cv2.convertScaleAbs(array, alpha=contrast)
        if saturation != 1 or turn:
            array = _recolor(array, saturation, turn)
        if contrast != 1 and not contrast_first:
            array = cv2.convertScaleAbs(array, alpha=contrast)
        return sample._replace(img=geometry.as_image(array))


class ColorJitter:
    """Change brightness, contrast, saturation and hue as torchvision's `adjust_*` do, each with probability 0.5.

    Factors are drawn from 1 - x ... 1 + x, where x is `brightness`, `contrast` or `saturation`; `hue` is the largest
    turn as a share of the colour circle. Contrast comes before or after the colour changes by a coin toss. This is the
    jitter of EoMT and benchmark-vfm-ss, with their values as defaults; `PhotometricDistortion` adds to the brightness
    and multiplies gray levels and the saturation of HSV instead.
    """

    def __init__(
        self, *, brightness: float = 32 / 255, contrast: float = 0.5, saturation: float = 0.5, hue: float = 18 / 360
    ) -> None:
        self.brightness = within(brightness, 0, 1, 'ColorJitter.brightness')
        self.contrast = within(contrast, 0, 1, 'ColorJitter.contrast')
        self.saturation = within(saturation, 0, 1, 'ColorJitter.saturation')
        self.hue = within(hue, 0, 0.5, 'ColorJitter.hue')

    def __call__(self, sample: Sample) -> Sample:
        colors = [(functional.adjust_saturation, self.saturation, 1.0), (functional.adjust_hue, self.hue, 0.0)]
        contrast = [(functional.adjust_contrast, self.contrast, 1.0)]
        img = _jittered(sample.img, [(functional.adjust_brightness, self.brightness, 1.0)])
        steps = [*contrast, *colors] if bernoulli(0.5) else [*colors, *contrast]
        return sample._replace(img=_jittered(img, steps))


class ResizeShortSide:
    """Resize so that the short side is `size`, keeping the aspect.

    `max_size` bounds the long side; `divisor` rounds both sides to its nearest multiple (at least one), or with
    `round_up` to the next one. `antialias=False` samples smaller images as OpenCV's bilinear resize does. In
    evaluation a data set applies this to the image only: labels stay as they are on disk.
    """

    def __init__(
        self,
        *,
        size: int,
        max_size: int | None = None,
        divisor: int = 1,
        round_up: bool = False,
        antialias: bool = True,
    ) -> None:
        self.size = int(within(size, 1, 65535, 'ResizeShortSide.size'))
        self.max_size = None if max_size is None else int(within(max_size, size, 10**6, 'ResizeShortSide.max_size'))
        self.divisor = int(within(divisor, 1, size, 'ResizeShortSide.divisor'))
        self.round_up, self.antialias = round_up, antialias

    def __call__(self, sample: Sample) -> Sample:
        size = geometry.fit(sample.img.shape[-2:], self.max_size or float('inf'), self.size)
        whole = math.ceil if self.round_up else round
        height, width = (max(whole(side / self.divisor), 1) * self.divisor for side in size)
        return geometry.resize(sample, (height, width), antialias=self.antialias)


class ResizeTo:
    """Resize to exactly `size` (a side, or (H, W)); the aspect may change. `antialias` as in `ResizeShortSide`."""

    def __init__(self, *, size: int | tuple[int, int], antialias: bool = True) -> None:
        self.size = sides(size, 'ResizeTo.size')
        self.antialias = antialias

    def __call__(self, sample: Sample) -> Sample:
        return geometry.resize(sample, self.size, antialias=self.antialias)


def _jittered(img: Tensor, steps: Sequence[tuple[Callable, float, float]]) -> Tensor:
    """Return `img` after each step (change, largest distance, middle) that a coin toss chooses."""
    for change, distance, middle in steps:
        if bernoulli(0.5):
            img = change(img, uniform(middle - distance, middle + distance))
    return img


def _recolor(array: np.ndarray, saturation: float, turn: float) -> np.ndarray:
    """Multiply the saturation and turn the hue of (H, W, 3) uint8 RGB."""
    levels = np.arange(256)
    table = np.empty((256, 1, 3), np.uint8)
    table[:, 0, 0] = np.round(levels + turn).astype(np.int64) % 180
    table[:, 0, 1] = (levels * saturation + 0.5).clip(0, 255)
    table[:, 0, 2] = levels
    hsv = cv2.LUT(cv2.cvtColor(array, cv2.COLOR_RGB2HSV), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
