"""Data set of unlabelled images, for self-supervised pretraining and prediction."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vitdense.arguments import interval
from vitdense.data.files import images as decoding
from vitdense.data.files.image_check import evenly_spaced, warn_about_images
from vitdense.data.files.listing import find_files, log_files
from vitdense.data.shards.shard_files import data_folder
from vitdense.data.string_array import texts
from vitdense.data.transforms.common import Pipeline, Transforms
from vitdense.types import Sample

logger = logging.getLogger('vitdense')


class ImageDataset:
    """All images below `folder`, which is relative to `root` (`data_root` of the config), with empty targets.

    `value_range` is that of `images.read_image`; with `follow_links`, links to files outside are read.
    Raises DataError at construction for a folder that does not exist or holds no image, UnreadableImage in
    `__getitem__` for files that cannot be decoded.
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
        self.folder = data_folder(root, folder)
        self.name = name or self.folder.name
        self.max_pixels = max_pixels
        self.value_range = interval(value_range, 'ImageDataset.value_range')
        self.pipeline = Pipeline(transforms)
        self.metainfo: dict[str, Any] = {'classes': {}}
        listing = find_files(self.folder, follow_links=follow_links)
        log_files(logger, self.name, 'images', self.folder, listing)
        self._files = texts(listing.files)

    def __len__(self) -> int:
        return len(self._files.ends)

    def __getitem__(self, index: int) -> Sample:
        file = self._files[index]
        options = dict(max_pixels=self.max_pixels, value_range=self.value_range)
        return self.pipeline(decoding.read_sample(self.folder / file, file, self.name, **options))

    def check(self, limit: int | None = 64) -> int:
        """Check the headers of `limit` images, evenly spaced (None: all); return the number of images checked."""
        rows = evenly_spaced(len(self), limit)
        paths = (self.folder / self._files[row] for row in rows)
        warn_about_images(paths, self.value_range, logger, self.name)
        return len(rows)

    def image_files(self) -> tuple[Path, list[str]]:
        """Return the folder of the images and the path of each below it, in the order of the data set."""
        return self.folder, list(self._files.all())
