"""Images and nothing else: what a network may learn from without labels."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from vitdense.arguments import interval
from vitdense.data.files import images as decoding
from vitdense.data.files.image_check import spaced, warn_about_images
from vitdense.data.files.listing import find_files, log_files
from vitdense.data.transforms.common import Pipeline, Transforms
from vitdense.types import Meta, Sample, Target

logger = logging.getLogger('vitdense')


class ImageDataset:
    """All images below `folder`, in folders of any depth; `folder` starts at `root` (a config gives its `data_root`).

    `value_range` is that of `images.read_image`; `follow_links` takes what links lead to from elsewhere as well. Their
    targets know nothing, and there are no classes. Raises DataError at construction for a folder that is not
    there or holds no image, UnreadableImage in `__getitem__` for files that cannot be used.
    """

    def __init__(
        self,
        folder: str | Path = '',
        *,
        root: str | Path = '',
        transforms: Transforms = (),
        name: str = '',
        max_pixels: int = decoding.MAX_PIXELS,
        value_range: tuple[float, float] | None = None,
        follow_links: bool = False,
    ) -> None:
        self.folder = Path(root) / folder
        self.name = name or self.folder.name
        self.max_pixels = max_pixels
        self.value_range = interval(value_range, 'ImageDataset.value_range')
        self.pipeline = Pipeline(transforms)
        self.metainfo: dict[str, Any] = {'classes': {}}
        found = find_files(self.folder, follow_links=follow_links)
        log_files(logger, self.name, 'images', self.folder, found)
        # an array, not a list: workers share it, while counting references would copy a million words into each
        self._files = np.array([os.fsencode(file) for file in found.files])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        file = os.fsdecode(self._files[index].item())
        path = self.folder / file
        img = tv_tensors.Image(decoding.read_image(path, max_pixels=self.max_pixels, value_range=self.value_range))
        size = (img.shape[-2], img.shape[-1])
        return self.pipeline(Sample(img, Target(), Meta(file, str(path), self.name, size, size)))

    def check(self, limit: int | None = 64) -> int:
        """Look at `limit` images, evenly spaced (None: all), warn of what is odd, and return how many there were."""
        rows = spaced(len(self), limit)
        paths = (self.folder / os.fsdecode(self._files[row].item()) for row in rows)
        warn_about_images(paths, self.value_range, logger, self.name)
        return len(rows)

    def image_files(self) -> tuple[Path, list[str]]:
        """Return the folder of the images and the path of each below it, in the order of the data set."""
        return self.folder, [os.fsdecode(file) for file in self._files.tolist()]
