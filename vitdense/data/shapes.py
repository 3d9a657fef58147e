"""Synthetic data set of circles, squares and triangles, for quick starts and tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from torchvision import tv_tensors

from vitdense.arguments import check
from vitdense.data.transforms.common import Pipeline, Transforms
from vitdense.types import Meta, Sample, Target

SHAPES = ('circle', 'square', 'triangle')
_COLORS = ([66, 135, 245], [245, 166, 35], [60, 180, 100])


class _Scene(NamedTuple):
    """A synthetic image and its objects."""

    img: np.ndarray  # (H, W, 3) uint8
    owner: np.ndarray  # (H, W) uint8: 0 background, i + 1 where object i is visible
    labels: np.ndarray  # (N,) int64


class ShapesScenes:
    """Images with boxes, labels, masks, a semantic map (0 background, 1.. shapes) and an image label.

    Boxes and masks are of the visible part; fully occluded objects are not in the target. `image_label` is the shape of
    the largest visible object. Colours are random and independent of the class.

    `split='train'` uses torch's global generator, so epochs differ (`SeededDataset` makes them repeatable);
    `split='val'` is fixed by (`seed`, index). `size` is a side or (H, W), `num_objects` and `radius`
    (pixels; half the width of a square is 0.85 of it, a triangle's corners lie at 1.15) are inclusive ranges.

    Difficulty: more and smaller objects, `noise` (standard deviation in gray levels), `contrast` (least distance of an
    object's colour from the background's, in gray levels, 0..200), `background` and `foreground` (ranges of their gray
    levels, for each channel; ranges that do not meet make objects brighter or darker than what is behind them),
    `occlusion` (objects may hide each other), `rotation` (largest turn of an object in degrees; 0: upright).
    """

    def __init__(
        self,
        num_images: int,
        *,
        size: int | tuple[int, int] = 64,
        split: Literal['train', 'val'] = 'train',
        seed: int = 0,
        num_objects: tuple[int, int] = (1, 4),
        radius: tuple[float, float] = (7, 16),
        noise: float = 10,
        contrast: float = 60,
        background: tuple[float, float] = (40, 215),
        foreground: tuple[float, float] = (0, 255),
        occlusion: bool = True,
        rotation: float = 0,
        transforms: Transforms = (),
        evaluation: bool = False,
        name: str = 'shapes',
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        _check(num_images >= 1, 'num_images', num_images, 'a data set has at least one image')
        _check(split in ('train', 'val'), 'split', split, "it is 'train' or 'val'")
        _check(1 <= num_objects[0] <= num_objects[1] <= 200, 'num_objects', num_objects, 'it is a range within 1..200')
        _check(2 <= radius[0] <= radius[1], 'radius', radius, 'it is a range of pixels, from 2 on')
        _check(2 * radius[1] < min(self.size), 'radius', radius, f'objects must fit into an image of {self.size}')
        for key, levels in (('background', background), ('foreground', foreground)):
            _check(0 <= levels[0] <= levels[1] <= 255, key, levels, 'it is a range of gray levels within 0..255')
        reach = max(foreground[1] - background[0], background[1] - foreground[0])
        _check(contrast <= reach, 'contrast', contrast, f'the ranges of gray levels are at most {reach:g} apart')
        _check(0 <= contrast <= 200, 'contrast', contrast, 'it lies in 0..200')
        self.num_images, self.split, self.seed, self.name = num_images, split, seed, name
        self.num_objects, self.radius, self.rotation = num_objects, radius, rotation
        self.noise, self.contrast, self.occlusion = noise, contrast, occlusion
        self.background, self.foreground = background, foreground
        self.evaluation = evaluation
        self.pipeline = Pipeline(transforms)
        colors = [list(color) for color in _COLORS]
        self.metainfo: dict[str, Any] = {
            'classes': {'semantic': ['background', *SHAPES], 'labels': list(SHAPES), 'image_label': list(SHAPES)},
            'palette': {'semantic': [[40, 40, 40], *colors], 'labels': colors, 'image_label': colors},
            'ignore': {'semantic': 'No pixel is ignored.'},
        }

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_images:
            raise IndexError(index)  # ends a plain `for sample in dataset`
        seed = [int(torch.randint(2**62, ()))] if self.split == 'train' else [self.seed, index]
        scene = self._draw(np.random.default_rng(seed))
        img = tv_tensors.Image(torch.from_numpy(scene.img).permute(2, 0, 1))  # (H, W, 3) -> (3, H, W)
        target = _target(scene, index)
        meta = Meta(index, f'{self.name}/{self.split}/{index}', self.name, self.size, self.size)
        if self.evaluation:
            return self.pipeline(Sample(img, Target(), meta))._replace(target=target)
        return self.pipeline(Sample(img, target, meta))

    def image_files(self) -> tuple[Path, list[str]]:
        """Return the folder that `Meta.path` names and the path of each image below it; there are no files."""
        return Path(self.name, self.split), [str(index) for index in range(self.num_images)]

    def _draw(self, rng: np.random.Generator) -> _Scene:
        height, width = self.size
        base = rng.uniform(*self.background, 3)
        texture = base + rng.uniform(-30, 30, (5, 5, 3))
        img = cv2.resize(texture.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        owner = np.zeros(self.size, np.uint8)
        count = int(rng.integers(self.num_objects[0], self.num_objects[1] + 1))
        labels = rng.integers(len(SHAPES), size=count)
        for number, label in enumerate(labels.tolist(), 1):
            figure = self._sample_figure(rng, label, owner)
            if figure is not None:
                owner[figure] = number
                img[figure] = self._color(rng, base)
        img += self.noise * rng.standard_normal(img.shape, np.float32)
        return _Scene(img.clip(0, 255).astype(np.uint8), owner, labels)

    def _sample_figure(self, rng: np.random.Generator, label: int, owner: np.ndarray) -> np.ndarray | None:
        """Return (H, W) bool of one figure somewhere inside the image; None when no free place was found."""
        height, width = self.size
        for _ in range(20):
            radius = rng.uniform(*self.radius)
            center = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
            figure = _figure(label, center, radius, rng.uniform(-self.rotation, self.rotation), self.size)
            if self.occlusion or not owner[figure].any():
                return figure
        return None

    def _color(self, rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
        """Return a random colour that differs from the background's by at least `contrast` in some channel."""
        while True:
            color = rng.uniform(*self.foreground, 3)
            if np.abs(color - base).max() >= self.contrast:
                return color


def _figure(
    label: int, center: tuple[float, float], radius: float, degrees: float, size: tuple[int, int]
) -> np.ndarray:
    """Return (H, W) bool: the pixels whose centres lie in a circle (label 0), square (1) or triangle (2, corner up)."""
    reach = math.ceil(1.25 * radius)  # no corner lies farther out
    left, top = (max(int(middle) - reach, 0) for middle in center)
    right, bottom = (int(middle) + reach + 1 for middle in center)
    figure = np.zeros(size, bool)
    window = figure[top:bottom, left:right]
    y = (np.arange(window.shape[0]) + (top + 0.5 - center[1]))[:, None]
    x = (np.arange(window.shape[1]) + (left + 0.5 - center[0]))[None]
    if label == 0:
        window[:] = x * x + y * y <= radius * radius
        return figure
    num_sides, first, distance = ((4, 0.0, 0.85), (3, math.pi / 2, 0.575))[label - 1]
    window[:] = True
    for side in range(num_sides):  # inside of every side: the distance along its normal is small enough
        angle = first + 2 * math.pi * side / num_sides + math.radians(degrees)
        window &= x * math.cos(angle) + y * math.sin(angle) <= distance * radius
    return figure


def _target(scene: _Scene, index: int) -> Target:
    numbers = np.arange(1, len(scene.labels) + 1, dtype=np.uint8)
    masks = scene.owner == numbers[:, None, None]  # (N, H, W)
    area = masks.sum((1, 2))
    visible = area > 0
    masks, area, labels = masks[visible], area[visible], scene.labels[visible]
    semantic = np.concatenate([[0], scene.labels + 1]).astype(np.uint8)[scene.owner]
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(_boxes(masks)), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=scene.owner.shape
    )
    return Target(
        boxes=boxes,
        labels=torch.from_numpy(labels),
        masks=tv_tensors.Mask(torch.from_numpy(masks)),
        semantic=tv_tensors.Mask(torch.from_numpy(semantic)),
        image_label=torch.tensor(labels[area.argmax()]),
        iscrowd=torch.zeros(len(labels), dtype=torch.bool),
        area=torch.from_numpy(area.astype(np.float32)),
        annotation_ids=index * 256 + torch.from_numpy(np.flatnonzero(visible)) + 1,
    )


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Return (N, 4) float32 xyxy, from the left edge of the first pixel to the right edge of the last."""
    rows, columns = masks.any(2), masks.any(1)  # (N, H), (N, W)
    height, width = masks.shape[1:]
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1, y1 = width - columns[:, ::-1].argmax(1), height - rows[:, ::-1].argmax(1)
    return np.stack([x0, y0, x1, y1], 1).astype(np.float32)


def _check(holds: bool, name: str, value: object, why: str) -> None:
    check(holds, f'ShapesScenes.{name}', value, why)
