"""Bit depth of image files, and the scaling that Pillow applies to values of other depths."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from PIL import Image

DEEP_COLORS = ('RGB', 'RGBA', 'LA')  # modes in which Pillow keeps the high byte of 16 bits


class Scale(NamedTuple):
    """Scaling by Pillow of the values of a file with fewer bits than its mode."""

    stored: int  # largest number that the file can hold
    shown: int  # what Pillow makes of it


def bits_of(image: Image.Image) -> int:
    """Return the bits per channel of an opened file, at least 8."""
    if image.mode == 'I':
        return 16 if image.format == 'PPM' else 32
    if image.format == 'TIFF' and (image.mode.startswith('I;16') or image.mode in DEEP_COLORS):
        return max(image.tag_v2.get(258) or (8,))
    return 16 if image.mode.startswith('I;16') or ';16' in _raw_mode(image) else 8


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's raw mode of an opened file, such as 'L;4' or 'RGB;16B'."""
    args = image.tile[0].args if getattr(image, 'tile', None) else ''
    return str(args[0] if isinstance(args, tuple) and args else args)


def scale_of(image: Image.Image) -> Scale | None:
    """Return the scaling that Pillow will apply to an opened file: of 2 and 4 bits, or of a PGM's maximum."""
    few = re.match(r'L;([24])', _raw_mode(image))
    if few:
        return Scale(2 ** int(few[1]) - 1, 255)
    if image.format == 'PPM' and image.tile and image.tile[0].codec_name.startswith('ppm'):
        args = image.tile[0].args
        if isinstance(args, tuple) and image.mode in ('L', 'I'):
            return Scale(args[1], 65535 if image.mode == 'I' else 255)
    return None


def stored_numbers(array: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the values stored in the file, int64."""
    return (array.astype(np.int64) * scale.stored + scale.shown // 2) // scale.shown


def stretch(array: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Return numbers as uint8: from (low, high) to 0 ... 255, values beyond clipped, NaN as low."""
    low, high = value_range
    return (np.nan_to_num((array.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255 + 0.5).astype(np.uint8)
