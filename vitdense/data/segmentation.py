"""Segmentation data set: a folder of images and one of label maps (ADE20K, Cityscapes, PASCAL VOC, CamVid, ...)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from vitdense.arguments import interval
from vitdense.data.files import images as decoding
from vitdense.data.files.image_check import evenly_spaced, warn_about_images
from vitdense.data.files.opening import IMAGE_SUFFIXES
from vitdense.data.files.pairs import find_pairs, list_files, read_split
from vitdense.data.files.splits import part_of
from vitdense.data.label_check import LabelStatistics
from vitdense.data.label_map import LabelTable
from vitdense.data.shards.shard_files import ShardFolder, data_folder
from vitdense.data.string_array import texts
from vitdense.data.transforms.common import Pipeline, Transforms
from vitdense.errors import DataError
from vitdense.types import Sample, Target

logger = logging.getLogger('vitdense')


class SegmentationDataset:
    """Images below `images`, matched by their relative path with label maps below `labels`.

    All paths start at `root` (a config gives its `data_root`). `classes` and `palette` are lists, files, or names such
    as 'ade20k' (`class_names.read_classes`); a missing palette is made up.

    What the numbers in the label files mean: number k is class k; with `reduce_zero_label` 0 is ignored and k is class
    k - 1 (ADE20K); `label_map={number: class index}` is an explicit table (255 or None: ignored); a map of classes
    {number: name} is such a table as well. `ignore` is one number, or several, that stand for no class (a class whose
    own number is ignored is left out); by default it is 255, unless the `label_map` gives 255 a class. With
    `colored_labels` the label files hold the colours of the palette instead (`ignore` may then name colours, too), and
    a `label_map` has colours (r, g, b) for keys. Any other number in a file is an error that names file and numbers.

    `image_suffix` and `label_suffix` say which files count and what is taken off their names for matching (found by
    itself where the names agree). In one folder, files that end in `label_suffix` are label maps. `split` is a text
    file that lists the images to use. `value_range` is that of `images.read_image`; `follow_links` takes what links
    lead to from elsewhere as well; `part` is that of `splits.part_of`. Without `labels` the data set holds images only,
    for prediction.

    With `evaluation` the transforms touch only the image, and `target.semantic` stays as on disk.

    Raises ConfigError or DataError at construction for missing folders, images without label, names that occur
    twice and tables that do not fit; UnreadableImage or DataError in `__getitem__` for files that cannot be used.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path | None = None,
        *,
        root: str | Path = '',
        classes: Sequence[str] | Mapping[int, str] | str | Path | None = None,
        palette: Sequence[Sequence[int]] | str | Path | None = None,
        image_suffix: str | None = None,
        label_suffix: str | None = None,
        label_map: Mapping[Any, int | None] | None = None,
        colored_labels: bool = False,
        reduce_zero_label: bool = False,
        ignore: int | Sequence[int | Sequence[int]] | None = None,
        transforms: Transforms = (),
        evaluation: bool = False,
        name: str = '',
        split: str | Path | None = None,
        max_pixels: int = decoding.MAX_PIXELS,
        value_range: tuple[float, float] | None = None,
        follow_links: bool = False,
        part: tuple[float, float] | None = None,
    ) -> None:
        root = Path(root)
        self.images = data_folder(root, images)
        self.labels = None if labels is None else data_folder(root, labels)
        self.name = name or self.images.name
        self.evaluation = evaluation
        self.max_pixels = max_pixels
        self.value_range = interval(value_range, 'SegmentationDataset.value_range')
        self.pipeline = Pipeline(transforms)
        numbers = dict(label_map=label_map, colored=colored_labels, reduce_zero_label=reduce_zero_label, ignore=ignore)
        self.table = LabelTable(classes, palette=palette, root=root, needed=labels is not None, **numbers)
        self.metainfo = self.table.metainfo
        listed = dict(image_suffix=image_suffix, label_suffix=label_suffix, follow_links=follow_links, name=self.name)
        files = _files(self.images, self.labels, split=None if split is None else root / split, **listed)
        self.label_statistics: LabelStatistics | None = None  # set by `check`
        rows = part_of(len(files), part, 'SegmentationDataset.part')
        self._keys, self._files, self._label_files = (
            texts(column).take(rows) for column in (files, *zip(*files.values(), strict=True))
        )

    def __len__(self) -> int:
        return len(self._keys.ends)

    def __getitem__(self, index: int) -> Sample:
        sample = self.read(index)
        if self.evaluation:
            return self.pipeline(sample._replace(target=Target()))._replace(target=sample.target)
        return self.pipeline(sample, self)

    def read(self, index: int) -> Sample:
        """Return a sample before the transforms."""
        path = self.images / self._files[index]
        sample = decoding.read_sample(
            path, self._keys[index], self.name, max_pixels=self.max_pixels, value_range=self.value_range
        )
        if self.labels is None:
            return sample
        semantic = tv_tensors.Mask(self._read_labels(index, sample.meta.size))
        return sample._replace(target=Target(semantic=semantic))

    def set_classes(self, classes: Mapping[str, Sequence[str]]) -> None:
        """Number the labels as in `classes` ({field: names}), by name; classes that are not among the labels may come
        in between. Where `classes` lacks a class of this data set, everything stays as it is.
        """
        if self.labels is not None and 'semantic' in classes:
            self.table.set_classes(classes['semantic'])
            self.metainfo = self.table.metainfo

    def image_files(self) -> tuple[Path, list[str]]:
        """Return the folder of the images and the path of each below it, in the order of the data set."""
        return self.images, list(self._files.all())

    def paths(self) -> Iterator[Path]:
        """Yield every file that the data set reads, images before their label maps, in its order."""
        if isinstance(self.images, ShardFolder):
            yield from self.images.paths()
            return
        for image, labels in zip(self._files.all(), self._label_files.all(), strict=True):
            yield self.images / image
            if self.labels is not None:
                yield self.labels / labels

    def check(self, limit: int | None = 64, *, training: bool = False) -> int:
        """Check `limit` label files, evenly spaced (None: all), and return the number of files checked.

        Meant for the start of a run. The log names absent classes and ignored values. Raises DataError that lists up to
        ten files with labels out of range or of another size than the image, and, for `training`, where fewer than two
        classes have pixels (all label files are read in that case).
        """
        if self.labels is None:
            return 0
        rows = evenly_spaced(len(self), limit)
        names = self.metainfo['classes']['semantic']
        self.label_statistics = LabelStatistics(names, colored=self.table.colors is not None)
        paths = (self.images / self._files[row] for row in rows)
        warn_about_images(paths, self.value_range, logger, self.name)
        self._check_rows(rows)
        self.label_statistics.log(logger, self.name, len(self))
        if training and len(self.label_statistics.present) < 2:
            self._check_more(set(rows))
            self.label_statistics.check_classes_present(str(self.labels))
        return len(rows)

    def _check_rows(self, rows: Iterable[int]) -> None:
        faults: list[DataError] = []
        for row in rows:
            try:
                self._check_row(row)
            except decoding.UnreadableImage:
                continue  # a bad image has its own policy (SeededDataset)
            except DataError as error:
                faults.append(error)
            if len(faults) == 10:
                break
        if faults:
            raise DataError(
                '\n'.join(fault.message for fault in faults),
                where=str(self.labels),
                why=faults[0].why,
                fix=faults[0].fix,
            )

    def _check_row(self, row: int) -> None:
        """Add one label file to the statistics. Raises DataError for labels that are wrong."""
        size = decoding.image_size(self.images / self._files[row], max_pixels=self.max_pixels)
        path = self.labels / self._label_files[row]
        raw = self._read_numbers(row, size)
        self.label_statistics.add(raw, self.table.apply(raw, path))
        self.table.check_palette(raw, path, decoding.label_colors(path, max_pixels=self.max_pixels))

    def _check_more(self, done: set[int]) -> None:
        """Check the other label files until two classes have pixels."""
        if len(self.label_statistics.names) < 2:
            return
        for row in range(len(self)):
            if row not in done:
                self._check_rows([row])
            if len(self.label_statistics.present) > 1:
                return

    def _read_numbers(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Return (H, W) numbers of a label file. Raises DataError when it does not have the `size` of its image."""
        path = self.labels / self._label_files[index]
        raw = decoding.read_label_map(path, colors=self.table.colors, max_pixels=self.max_pixels)
        if tuple(raw.shape) != size:
            turned = tuple(raw.shape) == (size[1], size[0])
            raise DataError(
                f'{path.name}: labels of (H, W) {tuple(raw.shape)} for an image of {size}',
                where=f'{path} and {self.images / self._files[index]}',
                why='the image was turned upright by its EXIF flag, the labels were drawn on the unturned one'
                if turned
                else 'every pixel of the image has one label',
                fix='store image and labels in one orientation' if turned else 'export the labels at full size',
            )
        return raw.numpy()

    def _read_labels(self, index: int, size: tuple[int, int]) -> Tensor:
        """Return (H, W) uint8 class indices or IGNORE."""
        numbers = self._read_numbers(index, size)
        return torch.from_numpy(self.table.apply(numbers, self.labels / self._label_files[index]))


def _files(images: Path, labels: Path | None, *, split: Path | None, **options: Any) -> dict[str, tuple[str, str]]:
    """Return `{key: (image, label file)}`; the label file is '' where there are no labels."""
    if labels is not None:
        return find_pairs(images, labels, split=split, **options)
    suffix, links, later = options['image_suffix'], options['follow_links'], split is not None
    suffixes = IMAGE_SUFFIXES if suffix is None else (suffix,)
    common = dict(follow_links=links, checked_later=later and not links, log_name=options['name'])
    files = list_files(images, suffixes, what='images', **common)
    files = read_split(split, files, images, follow_links=links) if later else files
    return {key: (name, '') for key, name in files.items()}
