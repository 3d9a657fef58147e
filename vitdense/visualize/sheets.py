"""Contact sheets: several images in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vitdense.visualize.predictions import as_image, enlarge
from vitdense.visualize.text import BACKGROUND, TEXT_COLOR, shorten, write_text

SHEET_WIDTH = 1920  # pixels; a sheet is about as wide as a screen
GAP = 6


def contact_sheet(
    images: Sequence[Tensor | np.ndarray],
    path: str | Path,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Write what `arrange` makes of `images` as one JPEG, and return its path."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(arrange(images, columns, titles)).save(path, format='JPEG', quality=92)
    return path


def arrange(
    images: Sequence[Tensor | np.ndarray], columns: int | None = None, titles: Sequence[str] | None = None
) -> np.ndarray:
    """Return `images` (uint8 RGB, any sizes) as one sheet (H, W, 3) uint8 of at most 1920 pixels width.

    Small images are enlarged by a whole factor, large ones reduced; every image keeps its proportions.
    `columns` defaults to a sheet that is wider than high. Raises ValueError for no images.
    """
    from PIL import Image

    if not images:
        raise ValueError('a contact sheet needs at least one image')
    if titles is not None and len(titles) != len(images):
        raise ValueError(f'{len(images)} images need as many titles, got {len(titles)}')
    columns = columns or _columns(images)
    width_limit = (SHEET_WIDTH - GAP) // columns - GAP
    tiles = [_fit(as_image(img), width_limit) for img in images]
    size = max(12, min(24, width_limit // 20))
    title_height = round(size * 1.5) if titles else 0
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    cell = max(tile.shape[1] for tile in tiles)
    heights = [max(tile.shape[0] for tile in row) + title_height for row in rows]
    sheet = Image.new('RGB', (GAP + columns * (cell + GAP), GAP + sum(height + GAP for height in heights)), BACKGROUND)
    top = GAP
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            left = GAP + column * (cell + GAP)
            if titles:
                words = shorten(titles[number * columns + column], int(cell / size * 1.7))
                write_text(sheet, (left, top + title_height / 2), words, size=size, fill=TEXT_COLOR)
            sheet.paste(Image.fromarray(tile), (left, top + title_height))
        top += heights[number] + GAP
    return np.asarray(sheet)


def _columns(images: Sequence[Tensor | np.ndarray]) -> int:
    """Return the number of columns that brings a sheet near to 3 : 2."""
    height, width = (float(np.median([as_image(img).shape[axis] for img in images])) for axis in (0, 1))
    return max(1, min(len(images), round(math.sqrt(len(images) * 1.5 * height / width))))


def _fit(image: np.ndarray, width_limit: int) -> np.ndarray:
    """Return the image at most `width_limit` pixels wide (and twice as high), enlarged only by a whole factor."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = min(width_limit / width, 2 * width_limit / height)
    if scale >= 1:
        return enlarge(image, min(int(scale), max(1, -(-480 // max(height, width)))))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
