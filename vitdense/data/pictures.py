"""Pictures and nothing else: what a network may learn from without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import tv_tensors

from vitdense.data import images as decoding
from vitdense.data.pairing import walk
from vitdense.data.transforms import Pipeline
from vitdense.errors import DataError
from vitdense.types import Meta, Sample, Target


class Pictures:
    """All pictures below `folder`, in folders of any depth; `folder` starts at `root` (a config gives its `data_root`).

    Their targets know nothing, and there are no classes. Raises DataError at construction for a folder that is not
    there or holds no picture, UnreadablePicture in `__getitem__` for files that cannot be used.
    """

    def __init__(
        self,
        folder: str | Path = '',
        *,
        root: str | Path = '',
        transforms: Sequence[Callable | dict] = (),
        name: str = '',
        max_pixels: int = decoding.MAX_PIXELS,
    ) -> None:
        self.folder = Path(root) / folder
        self.name = name or self.folder.name
        self.max_pixels = max_pixels
        self.pipeline = Pipeline(transforms)
        self.metainfo: dict[str, Any] = {'classes': {}}
        files = sorted(file for file in walk(self.folder) if file.lower().endswith(decoding.PICTURE_SUFFIXES))
        if not files:
            raise DataError(
                f'no pictures in {self.folder}',
                where=str(self.folder),
                why=f'no file below it ends in {" ".join(decoding.PICTURE_SUFFIXES)}'
                if self.folder.is_dir()
                else 'there is no such folder',
                fix='correct the path, or data_root=... of the config; relative paths start where the command runs',
            )
        # an array, not a list: workers share it, while counting references would copy a million words into each
        self._files = np.array([os.fsencode(file) for file in files])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        file = os.fsdecode(self._files[index].item())
        img = tv_tensors.Image(decoding.read_image(self.folder / file, max_pixels=self.max_pixels))
        size = (img.shape[-2], img.shape[-1])
        return self.pipeline(Sample(img, Target(), Meta(file, str(self.folder / file), self.name, size, size)))

    def image_files(self) -> tuple[Path, list[str]]:
        """Return the folder of the images and the path of each below it, in the order of the data set."""
        return self.folder, [os.fsdecode(file) for file in self._files.tolist()]
