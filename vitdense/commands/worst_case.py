"""Worst-case batches: the largest image size after the transforms and the largest number of objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitdense.data.dataset_protocols import ExtentDataset, MixedDataset, TransformedDataset
from vitdense.data.files.image_check import evenly_spaced
from vitdense.data.sampling import SeededDataset
from vitdense.data.transforms.common import Pipeline, RandomCrop, RandomResize, ResizeShortSide, ResizeTo
from vitdense.data.transforms.detection import LargeScaleJitter, MultiScaleCrop
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.data.transforms.geometry import fit
from vitdense.data.transforms.multi_image import Mosaic
from vitdense.types import Batch, Meta, Sample, Target

Size = tuple[int, int]  # (H, W)
SAMPLES = 16  # images of a data set that show which fields its targets have


def largest_sizes(transforms: Sequence[Callable], sources: Sequence[Size]) -> list[Size]:
    """Return the largest sizes that images of the sizes `sources` can have after `transforms`.

    Other transforms than vitdense's are assumed to keep the size.
    """
    sizes = list(dict.fromkeys(sources))
    for transform in transforms:
        sizes = list(dict.fromkeys(after for size in sizes for after in _after(transform, size)))
    return sizes


def _after(transform: Callable, size: Size) -> list[Size]:
    match transform:
        case RandomResize():
            largest = transform.ratio[1]
            return [fit(size, max(transform.scale) * largest, min(transform.scale) * largest)]
        case RandomCrop() | ResizeTo():
            return [tuple(transform.size)]
        case ResizeShortSide():
            whole = fit(size, transform.max_size or float('inf'), transform.size)
            return [tuple(max(round(side / transform.divisor), 1) * transform.divisor for side in whole)]
        case EvaluationCrop():
            return [(transform.size, transform.size)]
        case Mosaic():
            return [size, transform.size]
        case LargeScaleJitter():
            resized = fit(size, transform.size * transform.ratio[1], float('inf'))
            return [tuple(transform.size if transform.pad else min(side, transform.size) for side in resized)]
        case MultiScaleCrop():
            return _multi_scale(transform, size)
    return [size]


def _multi_scale(transform: MultiScaleCrop, size: Size) -> list[Size]:
    """Return the sizes with the largest short side: of the whole image, and of its flattest and steepest crops."""
    short = max(transform.sizes)
    if transform.square:
        return [(short, short)]
    shapes = [size]
    if transform.probability > 0:
        low, high = transform.crop
        height, width = fit(size, float('inf'), max(transform.before))
        shapes += [(min(low, height), min(high, width)), (min(high, height), min(low, width))]
    return [fit(shape, transform.max_size, short) for shape in shapes]


def worst_batch(dataset: Any, batch_size: int) -> Batch:
    """Return a batch of the largest image size and number of objects that `dataset` can have.

    `SAMPLES` images, spread over the data set, show which fields targets have. Sizes and number of objects are
    those of `extent()` of a data set, else of these images. Each data set of a mixture counts with its own transforms;
    the images have the largest size of all, the fields of all, and alternate between the data sets. Several images fill
    the largest height and the largest width, to which a batch of portrait and landscape images is padded. Images and
    targets are random.
    """
    whole = dataset.dataset if isinstance(dataset, SeededDataset) else dataset
    parts = whole.parts() if isinstance(whole, MixedDataset) else [(range(len(whole)), whole)]
    samples_of = [[dataset[rows[index]] for index in evenly_spaced(len(rows), SAMPLES)] for rows, _ in parts]
    extents = [_extent(part, samples) for (_, part), samples in zip(parts, samples_of, strict=True)]
    sizes, most = [size for sizes, _ in extents for size in sizes], max(most for _, most in extents)
    samples = [sample for some in samples_of for sample in some]
    if batch_size == 1:
        size = max(sizes, key=lambda size: size[0] * size[1])
    else:
        size = max(height for height, _ in sizes), max(width for _, width in sizes)
    target = _target(samples, size, most, whole.metainfo['classes'])
    imgs = torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8)
    names = [samples_of[row % len(samples_of)][0].meta.dataset for row in range(batch_size)]
    metas = [Meta(row, dataset=name, orig_size=size, size=size) for row, name in enumerate(names)]
    return Batch(imgs, [target] * batch_size, metas)


def _extent(dataset: Any, samples: Sequence[Sample]) -> tuple[list[Size], int]:
    """Return the largest sizes of images of a data set after its transforms, and its largest number of objects."""
    sources, most = dataset.extent() if isinstance(dataset, ExtentDataset) else ([], 0)
    sources = [*sources, *(sample.meta.orig_size for sample in samples)]
    pipeline = dataset.pipeline if isinstance(dataset, TransformedDataset) else None
    sizes = largest_sizes(pipeline.transforms if isinstance(pipeline, Pipeline) else (), sources)
    sizes += [tuple(sample.img.shape[-2:]) for sample in samples]
    return sizes, max(most, *(0 if sample.target.boxes is None else len(sample.target.boxes) for sample in samples), 0)


def _target(samples: Sequence[Sample], size: Size, most: int, classes: dict[str, Sequence[str]]) -> Target:
    """Return a target with every field that one of `samples` has."""
    height, width = size
    corners = torch.rand(most, 2, 2).sort(dim=1).values * torch.tensor([width, height]).float()
    boxes = corners.flatten(1)
    make = {
        'boxes': lambda: boxes + torch.tensor([0.0, 0, 1, 1]),
        'labels': lambda: _numbers(classes, 'labels', (most,)),
        'masks': lambda: _filled(boxes, size),
        'semantic': lambda: _numbers(classes, 'semantic', size).byte(),
        'iscrowd': lambda: torch.zeros(most, dtype=torch.bool),
        'area': lambda: (boxes[:, 2:] - boxes[:, :2]).prod(1),
        'annotation_ids': lambda: torch.arange(most),
    }
    known = {
        name: next((value for sample in samples if (value := sample.target.value_of(name)) is not None), None)
        for name in Target._fields
    }
    known = {name: value for name, value in known.items() if value is not None}
    return Target(**{name: make[name]() if name in make else value for name, value in known.items()})


def _numbers(classes: dict[str, Sequence[str]], field: str, shape: Sequence[int]) -> Tensor:
    return torch.randint(0, max(len(classes.get(field, ())), 1), tuple(shape))


def _filled(boxes: Tensor, size: Size) -> Tensor:
    """Return masks (N, H, W) of boxes."""
    rows, columns = torch.arange(size[0])[None], torch.arange(size[1])[None]
    inside_rows = (rows >= boxes[:, 1:2]) & (rows <= boxes[:, 3:4])  # (N, H)
    inside_columns = (columns >= boxes[:, 0:1]) & (columns <= boxes[:, 2:3])  # (N, W)
    return inside_rows[:, :, None] & inside_columns[:, None]
