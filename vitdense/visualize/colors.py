"""Class colours: distinct, and the same on every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from vitdense.visualize.fonts import warn_missing_glyphs

GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))  # radians; steps of it never fall on an old hue
GREY = (128, 128, 128)

# OKLab to linear sRGB (Ottosson 2020, "A perceptual color space for image processing")
_LAB_TO_LMS = np.array(
    [[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def palette(num_classes: int) -> np.ndarray:
    """Return (num_classes, 3) read-only uint8 RGB colours that are far from each other.

    Colour i never depends on `num_classes`, so a class keeps its colour when others are added. Hues turn by the golden
    angle and lightness cycles through three steps in OKLab, where equal steps look equal.
    """
    index = np.arange(num_classes)
    hue = 0.5 + index * GOLDEN_ANGLE
    lightness = np.array([0.70, 0.55, 0.84])[index % 3]
    chroma = np.array([0.19, 0.17, 0.15])[index % 3]
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = ((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colors = (encoded * 255).round().astype(np.uint8)
    colors.flags.writeable = False
    return colors


class ClassStyle:
    """Names and colours of the classes of one field of targets."""

    def __init__(self, names: Sequence[str], colors: Sequence[Sequence[int]] | None = None) -> None:
        self.names = tuple(names)
        chosen = np.asarray([] if colors is None else colors, dtype=np.uint8).reshape(-1, 3)
        self.colors = np.concatenate([chosen, palette(len(self.names))[len(chosen) :]])  # (K, 3) uint8

    @classmethod
    def of(cls, metainfo: Mapping[str, Any] | None, field: str, *, at_least: int = 0) -> ClassStyle:
        """Return names and colours of `field`; a class without name in `metainfo` is called by its index."""
        metainfo = metainfo or {}
        names = names_of(metainfo, field, at_least=at_least)
        warn_missing_glyphs(tuple(names))
        return cls(names, (metainfo.get('palette') or {}).get(field))

    def __len__(self) -> int:
        return len(self.names)


def names_of(metainfo: Mapping[str, Any], field: str, *, at_least: int) -> list[str]:
    """Return the class names of `field`; classes without a name are called `class NUMBER`."""
    names = list((metainfo.get('classes') or {}).get(field) or ())
    return names + [f'class {number}' for number in range(len(names), at_least)]
