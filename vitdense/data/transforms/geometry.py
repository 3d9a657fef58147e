"""Geometry of one Sample: image, boxes, masks and semantic map move together.

`target` fields are torchvision tv_tensors (`BoundingBoxes` XYXY, `Mask`), as the data sets give them. Masks move by
nearest neighbour with half-pixel centres, so that they stay on the pixels of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from vitdense.data.files.opening import MAX_PIXELS, unreadable
from vitdense.data.transforms.random import integer
from vitdense.types import IGNORE, OBJECT_FIELDS, Sample, Target


def resize(sample: Sample, size: tuple[int, int], *, antialias: bool = True) -> Sample:
    """Resize to `size` (H, W). Without `antialias` a smaller image is sampled, not averaged (as OpenCV does).

    Raises UnreadableImage for a size of more than `MAX_PIXELS`: a narrow image with a given short side.
    """
    if size[0] * size[1] > max(MAX_PIXELS, sample.img.shape[-2] * sample.img.shape[-1]):
        height, width = sample.img.shape[-2:]
        raise unreadable(
            sample.meta.path or f'image {sample.meta.image_id}',
            f'{width} x {height} pixels would become {size[1]} x {size[0]}',
            f'that is more than {MAX_PIXELS / 1e6:g} Mpx: the image is too narrow for this resize',
            'remove the image, or bound the long side (max_size)',
        )
    if tuple(sample.img.shape[-2:]) == tuple(size):
        return sample
    target = sample.target
    return sample._replace(
        img=resize_image(sample.img, size, antialias=antialias),
        target=target._replace(
            boxes=_if_there(functional.resize, target.boxes, size=list(size)),
            masks=_if_there(_nearest, target.masks, size=size),
            semantic=_if_there(_nearest, target.semantic, size=size),
        ),
    )


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Cut out a window that lies inside the image. Objects without a pixel in it are dropped."""
    if (top, left, height, width) == (0, 0, *sample.img.shape[-2:]):
        return sample
    window = {'top': top, 'left': left, 'height': height, 'width': width}
    cut = _each_field(sample, functional.crop, **window)
    return cut._replace(target=drop_empty(cut.target))


def pad(sample: Sample, size: tuple[int, int], *, fill: int = 0) -> Sample:
    """Pad at the right and the bottom up to `size` (H, W); what is added is ignored in the semantic map."""
    height, width = sample.img.shape[-2:]
    return pad_around(sample, (0, 0), (max(size[0], height), max(size[1], width)), fill=fill)


def pad_around(sample: Sample, corner: tuple[int, int], size: tuple[int, int], *, fill: int = 0) -> Sample:
    """Pad to `size` (H, W) with the upper left of the image at `corner` (row, column); what is added is as in `pad`."""
    (height, width), (top, left) = sample.img.shape[-2:], corner
    bottom, right = size[0] - height - top, size[1] - width - left
    if not any((top, left, bottom, right)):
        return sample
    border = [left, top, right, bottom]  # torchvision's order
    array = cv2.copyMakeBorder(
        as_array(sample.img), top, bottom, left, right, borderType=cv2.BORDER_CONSTANT, value=(fill, fill, fill)
    )
    target = sample.target
    return sample._replace(
        img=as_image(array),
        target=target._replace(
            boxes=_if_there(functional.pad, target.boxes, padding=border),
            masks=_if_there(functional.pad, target.masks, padding=border),
            semantic=_if_there(functional.pad, target.semantic, padding=border, fill=IGNORE),
        ),
    )


def flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    return _each_field(sample, functional.horizontal_flip)


def drop_empty(target: Target) -> Target:
    """Drop objects whose box has no area, or whose mask has no pixel left; all per-object fields together."""
    if target.boxes is None and target.masks is None:
        return target
    keeps = []
    if target.boxes is not None:
        keeps.append((target.boxes[:, 2:] > target.boxes[:, :2]).all(1))
    if target.masks is not None:  # a polygon may reach a pixel farther than its box, and a box farther than it
        keeps.append(target.masks.flatten(1).any(1))
    keep = torch.stack(keeps).all(0)
    return target if bool(keep.all()) else select(target, keep)


def select(target: Target, keep: Tensor) -> Target:
    """Return the objects of `target` for which `keep` (N,) is True."""
    return target._replace(**{name: _if_there(_rows, target.value_of(name), keep=keep) for name in OBJECT_FIELDS})


def resize_image(img: Tensor, size: tuple[int, int], *, antialias: bool = True) -> tv_tensors.Image:
    """Resize a (3, H, W) uint8 image bilinearly, half-pixel centres."""
    height, width = img.shape[-2:]
    if (height, width) == tuple(size):
        return tv_tensors.Image(img)
    if size[0] >= height and size[1] >= width:  # nothing to average: OpenCV gives the same within one gray level
        return as_image(cv2.resize(as_array(img), (size[1], size[0]), interpolation=cv2.INTER_LINEAR))
    image = as_image(np.ascontiguousarray(as_array(img)))  # torch is fast on whole channels-last memory only
    return functional.resize(image, list(size), antialias=antialias)


def as_array(img: Tensor) -> np.ndarray:
    """Return (3, H, W) as (H, W, 3) numpy rows that OpenCV reads; a view when memory lies channels last."""
    array = img.permute(1, 2, 0).as_subclass(Tensor).numpy()
    return array if array.strides[1:] == (3, 1) else np.ascontiguousarray(array)


def as_image(array: np.ndarray) -> tv_tensors.Image:
    """Return (H, W, 3) numpy as a (3, H, W) tv_tensor, without a copy."""
    return tv_tensors.Image(torch.from_numpy(array).permute(2, 0, 1))


def draw_window(
    source: Sequence[int], size: Sequence[int], crop: Sequence[int]
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Draw a window of at most `crop` (H, W) in an image as it would be after a resize from `source` to `size`.

    Return (top, left, height, width) in the source, at whole pixels, and the (H, W) that it is to be resized to.
    """
    starts, lengths, shape = [], [], []
    for side, old, new in zip(crop, source, size, strict=True):
        length = min(side, new)
        start = integer(new - length + 1)
        first = min(round(start * old / new), old - 1)
        last = max(round((start + length) * old / new), first + 1)
        starts.append(first), lengths.append(last - first), shape.append(length)
    return (*starts, *lengths), (shape[0], shape[1])


def fit(size: Sequence[int], longest: float, shortest: float) -> tuple[int, int]:
    """Return the largest size of the same aspect whose sides do not pass `longest` and `shortest`."""
    height, width = size
    factor = min(longest / max(height, width), shortest / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def _each_field(sample: Sample, function: Callable, **arguments: object) -> Sample:
    target = sample.target
    moved = {name: _if_there(function, target.value_of(name), **arguments) for name in ('boxes', 'masks', 'semantic')}
    return sample._replace(img=function(sample.img, **arguments), target=target._replace(**moved))


def _if_there(function: Callable, field: Tensor | None, **arguments: object) -> Tensor | None:
    return None if field is None else function(field, **arguments)


def _rows(field: Tensor, keep: Tensor) -> Tensor:
    return tv_tensors.wrap(field[keep], like=field) if isinstance(field, tv_tensors.TVTensor) else field[keep]


def _nearest(mask: Tensor, size: tuple[int, int]) -> tv_tensors.Mask:
    """Resize (..., H, W) labels: output pixel i reads input pixel floor((i + 0.5) * H / h)."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64) for new, old in zip(size, mask.shape[-2:], strict=True)
    )
    array = mask.as_subclass(Tensor).numpy()
    return tv_tensors.Mask(torch.from_numpy(array.take(rows, axis=-2).take(columns, axis=-1)))
