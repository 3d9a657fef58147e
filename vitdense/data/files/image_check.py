"""Checks of image files for unknown bit depths and EXIF orientations that labels may not share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vitdense.data.files.images import UnreadableImage, read_header, read_levels

DEEP = 8  # images of 16 bits that are decoded, at most


def evenly_spaced(length: int, limit: int | None) -> list[int]:
    """Return `limit` rows of a data set, evenly spaced; all for None."""
    return np.linspace(0, length - 1, length if limit is None else min(limit, length)).astype(int).tolist()


def dark_range(brightest: Sequence[int]) -> str:
    """Return a hint on the bit depth of 16-bit images with these largest values; '' if none is needed.

    Cameras and scanners of 10, 12 or 14 bits store their numbers in 16 bits as they are: read as 16 bits, such images
    are black.
    """
    top = max(brightest, default=0)
    bits = next((bits for bits in (8, 10, 12, 14) if top < 2**bits), None)
    if bits is None or not top:
        return ''
    return f'16-bit images whose brightest value is {top}: {bits} bits? then value_range=(0, {2**bits - 1})'


def warn_about_images(
    paths: Iterable[Path], value_range: tuple[float, float] | None, logger: logging.Logger, name: str
) -> None:
    """Warn of 16-bit images that seem to use fewer bits, and of EXIF orientations that keep the image size."""
    turned, brightest, checked = [], [], 0
    for path in paths:
        try:
            header = read_header(path)
            if header.bits == 16 and value_range is None and len(brightest) < DEEP:
                top = read_levels(path).brightest
                brightest += [] if top is None else [top]  # None: the range is in the file
        except UnreadableImage:
            continue  # a bad image has its own policy (SeededDataset)
        checked += 1
        if header.turn in (2, 3, 4):
            turned.append(path.name)
    hint = dark_range(brightest)
    if hint:
        logger.warning('%s: %s', name, hint)
    if turned:
        text = (
            '%s: EXIF turns %d of %d images by 180 degrees or mirrors them, such as %s: they are read upright, and '
            'their labels must have been drawn so'
        )
        logger.warning(text, name, len(turned), checked, turned[0])
