"""Drawing of boxes and their labels, placed so that labels do not overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vitdense.visualize.text import draw_label, label_size

SHADOW = (0, 0, 0)  # a thin edge around coloured lines, for bright images

Area = tuple[float, float, float, float]  # xyxy


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, names: Sequence[str], colors: np.ndarray, *, size: int
) -> np.ndarray:
    """Return (H, W, 3) uint8: the image with (N, 4) xyxy boxes and their names, the first on top.

    `size` is the font size in pixels. A name is drawn above its box, or at another corner where it would overlap the
    name of an earlier box or leave the image. Boxes that are not finite are left out.
    """
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    height, width = image.shape[:2]
    line = box_width(height, width)
    shown = [index for index in range(len(boxes)) if np.isfinite(boxes[index]).all()]
    corners = {index: _ordered(boxes[index]) for index in shown}
    label_corners = _label_corners(
        [(corners[index], label_size(names[index], size)) for index in shown], (width, height)
    )
    for index in reversed(shown):
        left, top, right, bottom = corners[index]
        color = tuple(int(value) for value in colors[index])
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=SHADOW, width=line + 2)
        pen.rectangle((left, top, right, bottom), outline=color, width=line)
    for index, corner in reversed(list(zip(shown, label_corners, strict=True))):
        draw_label(canvas, corner, names[index], color=colors[index], size=size)
    return np.asarray(canvas)


def box_width(height: int, width: int) -> int:
    """Return the width in pixels of the line of a box on an image of that size."""
    return round(1.2 + (height * width) ** 0.5 / 260)


def _label_corners(wanted: Sequence[tuple[Area, tuple[int, int]]], image: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the lower left corner (x, y) of each name: the first position that overlaps earlier names least."""
    taken: list[Area] = []
    for box, size in wanted:
        areas = list(_corners(box, size, image))
        overlaps = [sum(_overlap(area, other) for other in taken) for area in areas]
        taken.append(areas[int(np.argmin(overlaps))])
    return [(area[0], area[3]) for area in taken]


def _corners(box: Area, size: tuple[int, int], image: tuple[int, int]) -> Iterator[Area]:
    """Yield positions of a name of `size` (w, h) at a box, best first, inside an image of (W, H)."""
    left, top, right, bottom = box
    width, height = size
    starts = (left, top - height), (left, top), (left, bottom), (right - width, top - height), (left, bottom - height)
    for x, y in starts:
        x = max(0, min(x, image[0] - width))
        y = max(0, min(y, image[1] - height))
        yield x, y, x + width, y + height


def _overlap(area: Area, other: Area) -> float:
    width = min(area[2], other[2]) - max(area[0], other[0])
    height = min(area[3], other[3]) - max(area[1], other[1])
    return max(width, 0) * max(height, 0)


def _ordered(box: np.ndarray) -> Area:
    left, top, right, bottom = (float(value) for value in box)
    return left, top, max(left, right), max(top, bottom)
