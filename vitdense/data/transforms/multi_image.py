"""Augmentation that combines several images of a data set: mosaic, MixUp of detections, and copy-paste of objects.

These steps are of the kind `MixingTransform`: the pipeline gives them `other`, which reads another random image of the
same data set and applies the steps before them. The choice comes from torch's global generator, like all randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from vitdense.arguments import check, sides, span, within
from vitdense.data.transforms import geometry
from vitdense.data.transforms.random import bernoulli, beta, current_epoch, uniform
from vitdense.errors import ConfigError
from vitdense.types import OBJECT_FIELDS, Sample, Target

Other = Callable[[], Sample]


class Mosaic:
    """Put four images into the quadrants around a random point of an image of `size` (a side, or (H, W)).

    Bochkovskiy et al. 2020 (YOLOv4, https://arxiv.org/abs/2004.10934, section 3.4). Each image is resized to fit `size`
    times a random `ratio` and touches the point with its corner; what lies outside its quadrant is cut off, what is
    missing is `fill` gray and ignored in the semantic map. The point lies in the middle half of both sides.

    A sample becomes a mosaic with `probability` in the first `epochs` passes over the data (None: in all of them).
    """

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        ratio: tuple[float, float] = (0.5, 1.5),
        probability: float = 0.5,
        epochs: float | None = None,
        fill: int = 114,
    ) -> None:
        self.size = sides(size, 'Mosaic.size')
        self.ratio = span(ratio, 'Mosaic.ratio')
        self.probability = within(probability, 0, 1, 'Mosaic.probability')
        self.epochs = epochs
        self.fill = int(within(fill, 0, 255, 'Mosaic.fill'))

    def mix(self, sample: Sample, other: Other) -> Sample:
        """Return the mosaic of `sample` and three others, or `sample`."""
        if sample.target.image_label is not None:
            raise _cannot_mix('Mosaic', 'they have labels of whole images', 'four images have four of them')
        if not is_on(self.probability, self.epochs):
            return sample
        row, column = (int(side * uniform(0.25, 0.75)) for side in self.size)
        parts = [sample, other(), other(), other()]
        parts = [self._quadrant(part, number, row, column) for number, part in enumerate(parts)]
        img, semantic = parts[0].img, parts[0].target.semantic
        for number, part in enumerate(parts[1:], 1):
            rows = slice(row, None) if number // 2 else slice(None, row)
            columns = slice(column, None) if number % 2 else slice(None, column)
            img[:, rows, columns] = part.img[:, rows, columns]
            if semantic is not None:
                semantic[rows, columns] = part.target.semantic[rows, columns]
        return sample._replace(img=img, target=joined([part.target for part in parts]))

    def _quadrant(self, sample: Sample, number: int, row: int, column: int) -> Sample:
        """Return an image of the whole size with `sample` in quadrant `number`: upper left, upper right, lower ..."""
        factor = uniform(*self.ratio)
        sample = geometry.resize(
            sample, geometry.fit(sample.img.shape[-2:], factor * max(self.size), factor * min(self.size))
        )
        height, width = sample.img.shape[-2:]
        rows, columns = (row, self.size[0] - row)[number // 2], (column, self.size[1] - column)[number % 2]
        rows, columns = min(rows, height), min(columns, width)
        top, left = (0 if number // 2 else height - rows), (0 if number % 2 else width - columns)
        sample = geometry.crop(sample, top, left, rows, columns)
        corner = row - (0 if number // 2 else rows), column - (0 if number % 2 else columns)
        return geometry.pad_around(sample, corner, self.size, fill=self.fill)


class MixUp:
    """Blend two images of objects; the target has the objects of both (Zhang et al. 2019, arXiv 1902.04103).

    The share of the first image is drawn from Beta(`alpha`, `alpha`). The other image is resized to fit inside the
    first, at its upper left; outside of it the first stays as it is. `probability` and `epochs` as in `Mosaic`.
    Semantic maps cannot be blended, which is a ConfigError; for image labels there is `ops.mixing.ImageMixing`.
    """

    def __init__(self, *, alpha: float = 1.5, probability: float = 0.15, epochs: float | None = None) -> None:
        check(alpha > 0, 'MixUp.alpha', alpha, 'it is a number above 0')
        self.alpha = alpha
        self.probability = within(probability, 0, 1, 'MixUp.probability')
        self.epochs = epochs

    def mix(self, sample: Sample, other: Other) -> Sample:
        """Return the blend of `sample` and another, or `sample`."""
        if sample.target.semantic is not None:
            raise _cannot_mix('MixUp', 'they have semantic maps', 'a pixel of two classes has no label')
        if not is_on(self.probability, self.epochs):
            return sample
        share, size = beta(self.alpha), tuple(sample.img.shape[-2:])
        second = other()
        if second.meta.image_id == sample.meta.image_id:
            return sample  # each object would be there twice
        second = geometry.resize(second, fit_inside(second.img.shape[-2:], size))
        height, width = second.img.shape[-2:]
        img = sample.img.as_subclass(Tensor).clone()
        window = img[:, :height, :width]
        blend = window.float().mul(share).add_(second.img.as_subclass(Tensor).float(), alpha=1 - share)
        img[:, :height, :width] = blend.round_().to(torch.uint8)
        second = geometry.pad_around(second, (0, 0), size)
        return sample._replace(img=tv_tensors.Image(img), target=joined([sample.target, second.target]))


class CopyPaste:
    """Paste a random half of another image's objects, cut out by their masks (Ghiasi et al. 2021, arXiv 2012.07177).

    Objects below lose the pixels that are covered: their masks shrink, their boxes are those of what is left, and they
    are dropped where less than `min_visible` of their pixels is. Crowds are not pasted. The images are aligned at the
    upper left and jittered by the steps before (section 3.1: large-scale jitter). A semantic map gets the pasted pixels
    of the other's map. `probability` and `epochs` as in `Mosaic`. Raises ConfigError for data without masks.
    """

    def __init__(
        self, *, probability: float = 0.5, objects: float = 0.5, min_visible: float = 0.1, epochs: float | None = None
    ) -> None:
        self.probability = within(probability, 0, 1, 'CopyPaste.probability')
        self.objects = within(objects, 0, 1, 'CopyPaste.objects')
        self.min_visible = within(min_visible, 0, 1, 'CopyPaste.min_visible')
        self.epochs = epochs

    def mix(self, sample: Sample, other: Other) -> Sample:
        """Return `sample` with objects of another image, or as it is."""
        if sample.target.masks is None:
            raise _cannot_mix('CopyPaste', 'their objects have no masks', 'they are cut out by their masks: masks=True')
        if not is_on(self.probability, self.epochs):
            return sample
        size = tuple(sample.img.shape[-2:])
        second = other()
        height, width = (min(side, mine) for side, mine in zip(second.img.shape[-2:], size, strict=True))
        second = geometry.pad_around(geometry.crop(second, 0, 0, height, width), (0, 0), size)
        chosen = torch.rand(len(second.target.masks)) < self.objects
        if second.target.iscrowd is not None:
            chosen &= ~second.target.iscrowd
        pasted = geometry.select(second.target, chosen)
        covered = pasted.masks.as_subclass(Tensor).any(0)
        img = torch.where(covered, second.img.as_subclass(Tensor), sample.img.as_subclass(Tensor))
        target = joined([self._below(sample.target, covered), pasted])
        if target.semantic is not None:
            semantic = torch.where(covered, second.target.semantic.as_subclass(Tensor), target.semantic)
            target = target._replace(semantic=tv_tensors.Mask(semantic))
        return sample._replace(img=tv_tensors.Image(img), target=target)

    def _below(self, target: Target, covered: Tensor) -> Target:
        """Return the objects of `target` without the pixels that are `covered` (H, W)."""
        before = target.masks.as_subclass(Tensor)
        masks = before & ~covered
        areas, left = before.flatten(1).sum(1), masks.flatten(1).sum(1)
        boxes = target.boxes
        changed = (left < areas) & (left > 0)
        if boxes is not None and changed.any():
            boxes = boxes.clone()
            ends = torch.tensor([0, 0, 1, 1])  # masks_to_boxes gives the last pixel, boxes end behind it
            boxes[changed] = (masks_to_boxes(masks[changed]) + ends).to(boxes.dtype)
            boxes = tv_tensors.wrap(boxes, like=target.boxes)
        target = target._replace(masks=tv_tensors.Mask(masks), boxes=boxes)
        return geometry.select(target, (left > 0) & (left >= self.min_visible * areas))


def is_on(probability: float, epochs: float | None) -> bool:
    """Return whether a step applies to the sample at hand."""
    return (epochs is None or current_epoch() < epochs) and bernoulli(probability)


def fit_inside(size: Sequence[int], bounds: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size (H, W) of the aspect of `size` that lies inside `bounds` (H, W)."""
    factor = min(bound / side for side, bound in zip(size, bounds, strict=True))
    height, width = (min(max(round(side * factor), 1), bound) for side, bound in zip(size, bounds, strict=True))
    return height, width


def joined(targets: Sequence[Target]) -> Target:
    """Return the objects of all targets, which have the same fields; other fields are those of the first."""
    fields = {}
    for name in OBJECT_FIELDS:
        values = [target.value_of(name) for target in targets]
        if values[0] is not None:
            stacked = torch.cat([value.as_subclass(Tensor) for value in values])
            like = values[0]
            fields[name] = tv_tensors.wrap(stacked, like=like) if isinstance(like, tv_tensors.TVTensor) else stacked
    return targets[0]._replace(**fields)


def _cannot_mix(step: str, what: str, why: str) -> ConfigError:
    return ConfigError(
        f'{step} cannot mix these images: {what}',
        where=f'transforms: {step}',
        why=why,
        fix=f'remove {step} from the transforms, or use it on other data',
    )
