"""Classification data set: one folder for each class (ImageNet), or a list of images and their classes."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitdense.arguments import interval
from vitdense.data.files import images as decoding
from vitdense.data.files.image_check import evenly_spaced, warn_about_images
from vitdense.data.files.listing import FileListing, as_text, count_endings, find_files, iterate_list, log_files
from vitdense.data.files.opening import IMAGE_SUFFIXES
from vitdense.data.files.pairs import safe_below
from vitdense.data.files.similar_names import missing_files, near_match
from vitdense.data.files.splits import part_of
from vitdense.data.shards.shard_files import ShardFolder, data_folder
from vitdense.data.string_array import StringArray, StringCollector
from vitdense.data.transforms.common import Pipeline, Transforms
from vitdense.data.wordnet import read_folder_classes
from vitdense.errors import DataError, did_you_mean
from vitdense.types import Sample, Target

logger = logging.getLogger('vitdense')


class ClassificationDataset:
    """Images below `folder`, which starts at `root` (a config gives its `data_root`), with one label each.

    The class of an image is the first folder on its way (`cat/a.jpg`, `cat/more/b.jpg`). With `split` it is listed in a
    text file, one line for each image: its path below `folder`, a tab or a space, and the class (its name, its
    folder's name, or its number); a line without class takes the folder's. With `multi_label` a line names any number
    of classes, separated by commas, and the label is (K,) float32 with 1 for those.

    `classes` says which classes there are and in which order: by default the folders that hold images, sorted;
    'imagenet1k', the 1000 of ILSVRC 2012 in the order of its classifiers; a WordNet file (`n01440764 tench, Tinca
    tinca` in each line); or a list, or a file as for `class_names.read_classes`. `wordnet` ('imagenet1k' or such
    a file) gives folders that are called by WordNet ids readable names. `value_range` is that of `images.read_image`;
    `follow_links` takes what links lead to from elsewhere as well; `part` is that of `splits.part_of`,
    with the classes as groups.

    Raises ConfigError or DataError at construction for missing folders, lists that cannot be read, folders or lines of
    an unknown class, and class folders with files of which none is an image; UnreadableImage in `__getitem__` for
    files that cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        root: str | Path = '',
        classes: Sequence[str] | Mapping[int, str] | str | Path | None = None,
        wordnet: str | Path | None = None,
        split: str | Path | None = None,
        multi_label: bool = False,
        transforms: Transforms = (),
        name: str = '',
        max_pixels: int = decoding.MAX_PIXELS,
        value_range: tuple[float, float] | None = None,
        follow_links: bool = False,
        part: tuple[float, float] | None = None,
    ) -> None:
        root = Path(root)
        self.folder = data_folder(root, folder)
        self.name = name or self.folder.name
        self.max_pixels = max_pixels
        self.value_range = interval(value_range, 'ClassificationDataset.value_range')
        self.follow_links = follow_links
        self.multi_label = multi_label
        self.pipeline = Pipeline(transforms)
        self._listed = split is not None
        listing = _walk_folders(self.folder, follow_links) if split is None else None
        self._files, labels, numbers = _collect(_listed(root / split) if listing is None else _in_folders(listing))
        words = {word for label in labels for word in self._words(label)}
        names, self._number = read_folder_classes(classes, wordnet, sorted(words, key=_in_order), root=root)
        self.metainfo: dict[str, Any] = {'classes': {'image_label': names}}
        table = self._read_labels(labels, names, lambda row: self._first(row, numbers, split))
        groups = None if multi_label else table[numbers]
        rows = part_of(len(numbers), part, 'ClassificationDataset.part', groups=groups)
        self._files, self._labels = self._files.take(rows), table[numbers[rows]]
        if listing:
            self._check_folders(listing, every=classes is None)
            log_files(logger, self.name, 'images', self.folder, listing)
        else:
            logger.info('%s: %d images listed in %s', self.name, len(self), split)
        self._log_absent_classes(names)

    def __len__(self) -> int:
        return len(self._files.ends)

    def __getitem__(self, index: int) -> Sample:
        file = self._files[index]
        path = self._below(file, str(self.folder)) if self._listed else self.folder / file
        sample = decoding.read_sample(path, file, self.name, max_pixels=self.max_pixels, value_range=self.value_range)
        return self.pipeline(sample._replace(target=Target(image_label=self._label(index))))

    def label_of(self, index: int) -> int:
        """Return the class number of an image with one label."""
        return int(self._labels[index])

    def image_files(self) -> tuple[Path, list[str]]:
        """Return the folder of the images and the path of each below it, in the order of the data set."""
        return self.folder, list(self._files.all())

    def paths(self) -> Iterator[Path]:
        """Yield every file that the data set reads, in its order."""
        folder, files = self.image_files()
        return folder.paths() if isinstance(folder, ShardFolder) else (folder / file for file in files)

    def missing(self) -> list[str]:
        """Return the listed files that do not exist."""
        return missing_files(self.folder, self._files.all_coded()) if self._listed else []

    def check(self, limit: int | None = 64, *, training: bool = False) -> int:
        """Check that `limit` files of a list exist, evenly spaced (None: all); return the number of files checked.

        Raises DataError that names up to ten missing files, and, for `training`, for images of a single class.
        """
        rows = evenly_spaced(len(self), limit)
        if self._listed:
            self._check_exist(rows)
        paths = (self.folder / self._files[row] for row in rows)
        warn_about_images(paths, self.value_range, logger, self.name)
        if training and not self.multi_label:
            self._check_several_classes()
        return len(rows) if self._listed else 0

    def _check_exist(self, rows: Sequence[int]) -> None:
        files = [self._files[row] for row in rows]
        missing = [file for file in files if not os.path.isfile(self._below(file, 'split'))]
        if not missing:
            return
        near = near_match(self.folder, missing[0])
        raise DataError(
            f'{len(missing)} of {len(rows)} images of the list are not there, such as {", ".join(missing[:10])}',
            where=str(self.folder),
            why='a line begins with the path of an image below the folder' + (f'; {near}' if near else ''),
            fix='correct the list, or the folder that its paths start at',
        )

    def _check_several_classes(self) -> None:
        labels = np.unique(self._labels)
        if len(labels) > 1:
            return
        names = self.metainfo['classes']['image_label']
        raise DataError(
            f'all {len(self)} images are of one class, {names[int(labels[0])]!r}',
            where=str(self.folder),
            why='with a single class the loss is 0 and the accuracy 1 for any weights'
            + ('; the folders of the classes may lie one folder further down' if len(names) == 1 else ''),
            fix='give the folder that holds one folder for each class, with images of at least two',
        )

    def _below(self, file: str, where: str) -> Path:
        return safe_below(self.folder, file, where=where, follow_links=self.follow_links)

    def _check_folders(self, listing: FileListing, *, every: bool) -> None:
        """Raise DataError for class folders with files of which none is an image; warn of those without any file."""
        if isinstance(self.folder, ShardFolder):
            return
        with os.scandir(self.folder) as entries:
            folders = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.')}
        empty = sorted(folders - {file.split('/', 1)[0] for file in listing.files})
        others = {name: [file for file in listing.left_out if file.startswith(f'{name}/')] for name in empty}
        full = [name for name in empty if others[name] and (every or name in self._number)]
        if full:
            raise DataError(
                f'no images in {len(full)} of {len(folders)} class folders, such as {full[0]!r}',
                where=str(self.folder / full[0]),
                why=f'there are {count_endings(others[full[0]])} files, such as {others[full[0]][0]}; images end in '
                f'{" ".join(IMAGE_SUFFIXES)}',
                fix='rename or convert the files, or move the folder away if it is no class',
            )
        if empty:
            text = '%s: no images in %d of %d folders, such as %s: they are no classes'
            logger.warning(text, self.name, len(empty), len(folders), empty[0])

    def _label(self, index: int) -> Tensor:
        label = self._labels[index]
        if not self.multi_label:
            return torch.tensor(int(label))
        shares = torch.zeros(len(self.metainfo['classes']['image_label']))
        shares[[int(number) for number in label.split(b',') if number]] = 1
        return shares

    def _read_labels(self, labels: Sequence[str], names: Sequence[str], where: Callable[[int], str]) -> np.ndarray:
        """Return the class number of each different label, or their numbers as text: b'3,17'."""
        rows = list(enumerate(labels))
        if not self.multi_label:
            return np.array([self._class_of(label, names, row, where) for row, label in rows], np.int32)
        return np.array(
            [
                ','.join(str(self._class_of(word, names, row, where)) for word in self._words(label))
                for row, label in rows
            ],
            dtype=bytes,
        )

    def _first(self, label: int, numbers: np.ndarray, split: Any) -> str:
        """Return where the label of a number occurs first."""
        return f'{split or self.folder}: {self._files[int(np.argmax(numbers == label))]}'

    def _words(self, words: str) -> list[str]:
        return [word.strip() for word in words.split(',') if word.strip()] if self.multi_label else [words]

    def _class_of(self, word: str, names: Sequence[str], row: int, where: Callable[[int], str]) -> int:
        number = self._number.get(word)
        if number is None and self._listed and word.isdecimal() and int(word) < len(names):
            number = int(word)
        if number is None:
            raise DataError(
                f"'{word}' is no class{did_you_mean(word, self._number)}",
                where=where(row),
                why=f'there are {len(names)} classes, such as {", ".join(names[:3])}',
                fix='call the folder as the class is called, or add the class to classes=',
            )
        return number

    def _log_absent_classes(self, names: Sequence[str]) -> None:
        if self.multi_label:
            return
        present = np.bincount(self._labels, minlength=len(names)) > 0
        if not present.all():
            text = 'no images of %d of the %d classes in %s, such as %s'
            logger.info(text, (~present).sum(), len(names), self.folder, names[int(np.argmin(present))])


def _in_order(word: str) -> tuple[int, str]:
    """Sort numbers as numbers, before words."""
    return (int(word), '') if word.isdecimal() else (10**9, word)


def _walk_folders(folder: Path, follow_links: bool) -> FileListing:
    """Return the images below `folder`. Raises DataError for images outside of class folders."""
    listing = find_files(folder, follow_links=follow_links)
    loose = [file for file in listing.files if '/' not in file]
    if loose:
        raise DataError(
            f'{len(loose)} images lie in no class folder, such as {loose[0]}',
            where=str(folder),
            why='an image lies in the folder of its class',
            fix="sort them into folders, one for each class, or list them with their classes: split='train.txt'",
        )
    return listing


def _in_folders(listing: FileListing) -> Iterator[tuple[str, str]]:
    """Yield the path of each image and its label: the first folder on its way."""
    return ((file, as_text(file.split('/', 1)[0])) for file in listing.files)


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the path of each image in a list, and its label. Raises DataError."""
    return (_split_line(line, path, number) for number, line in iterate_list(path))


def _collect(rows: Iterable[tuple[str, str]]) -> tuple[StringArray, list[str], np.ndarray]:
    """Return the paths, the different labels, and (N,) int32 the row of each image's label among these."""
    files, labels, numbers = StringCollector(), {}, array('i')
    for file, label in rows:
        files.append(file)
        numbers.append(labels.setdefault(label, len(labels)))
    return files.array(), list(labels), np.frombuffer(numbers, np.int32)


def _split_line(line: str, path: Path, number: int) -> tuple[str, str]:
    """Return (path, class): split at the tab, else at the last space behind the image's suffix, else the folder."""
    file, _, word = line.partition('\t')
    if not word and not line.lower().endswith(IMAGE_SUFFIXES):
        file, _, word = line.rpartition(' ')
    if not word and '/' in line:
        file, word = line, line.split('/', 1)[0]
    if not word or not file:
        raise DataError(
            f'{line!r} names no class',
            where=f'{path} line {number}',
            why='a line is an image, a tab or a space, and its class; or an image in the folder of its class',
            fix='write for example: cat/0001.jpg, or 0001.jpg, a tab and cat',
        )
    return file.strip(), word.strip()
