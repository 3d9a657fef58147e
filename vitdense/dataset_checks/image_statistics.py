"""Images of a data set, read while their statistics are collected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from vitdense.data.files.image_check import dark_range
from vitdense.data.files.images import MAX_PIXELS, read_header, read_levels
from vitdense.dataset_checks.near_duplicates import fingerprint, names, near_duplicates
from vitdense.dataset_checks.report import Finding


class ImageStatistics:
    """Image reader that collects bit depths, EXIF orientations and fingerprints; usable from several threads."""

    def __init__(self, *, max_pixels: int = MAX_PIXELS, value_range: tuple[float, float] | None = None) -> None:
        self.options = {'max_pixels': max_pixels, 'value_range': value_range}
        self.brightest: list[int] = []  # of files of 16 bits
        self.turned: list[str] = []  # by 180 degrees, or mirrored
        self.fingerprints: dict[Path, np.ndarray] = {}

    def read(self, path: Path) -> Tensor:
        """Read an image as `read_image` does. Raises UnreadableImage."""
        if read_header(path, max_pixels=self.options['max_pixels']).turn in (2, 3, 4):
            self.turned.append(path.name)
        image, brightest = read_levels(path, **self.options)
        if brightest is not None:
            self.brightest.append(brightest)
        row = fingerprint(image)
        if row is not None:
            self.fingerprints[path] = row
        return image

    def duplicates(self, root: Path) -> list[Finding]:
        """Return `similar`: the groups of images that are near duplicates, by their paths below `root`."""
        groups = near_duplicates(self.fingerprints)
        return [Finding('similar', str(len(group)), names(group, root)) for group in groups]

    def notes(self) -> list[tuple[str, str]]:
        """Return (name, text) rows on EXIF orientations that labels may not share."""
        if not self.turned:
            return []
        words = f'{len(self.turned):,}, such as {min(self.turned)}: what was drawn on them must have been drawn upright'
        return [('turned by 180 degrees or mirrored by EXIF, which no size can show', words)]


def range_findings(images: Path, statistics: ImageStatistics) -> list[Finding]:
    """Return the finding that images of 16 bits seem to have fewer, if they do."""
    odd = dark_range(statistics.brightest)
    return [Finding('range', images.name, odd)] if odd else []
