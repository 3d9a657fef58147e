"""Paths of the outputs of test images: those of the images below their data set, the same in every process."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vitdense.data.dataset_protocols import FilePathsDataset, ImageFileDataset
from vitdense.data.mixture import Mixture
from vitdense.errors import ConfigError
from vitdense.loading.evaluation_sets import datasets_of
from vitdense.types import Meta

logger = logging.getLogger('vitdense')


class OutputPath(NamedTuple):
    """The output path of an image."""

    folder: Path  # of its test set and its data set within a mixture; empty where there is one of each
    name: str  # the path of the image below its data set, without suffix


class OutputPaths:
    """The output path of every image that a `loader` of one or several test sets reads; no two images have the same.

    Data sets list their images with `image_files()`, which returns their folder and the paths below it. An image of a
    data set without that method is called by its `image_id`.
    """

    def __init__(self, loader: Any) -> None:
        self._paths: dict[tuple[str, str, str], OutputPath] = {}  # by test set, data set and path of the image
        self._repeated: dict[tuple[str, str, str], str] = {}  # images listed more than once: what precedes their id
        self._inputs: set[str] = set()
        self._image_folders: set[str] = set()  # folders of images
        self._warned = False
        for name, dataset in datasets_of(loader).items():
            for folder, part in _parts(dataset, Path(name)):
                self._add(name, folder, part)

    def path_of(self, meta: Meta, test_set: str = '') -> OutputPath:
        """Return the output path of an image of the test set of that name."""
        key = (test_set, meta.dataset, meta.path)
        path = self._paths.get(key)
        if path is None:
            stem = Path(meta.path).stem
            own = isinstance(meta.image_id, str) or not stem
            return OutputPath(Path(test_set), _safe(str(meta.image_id) if own else f'{stem}_{meta.image_id}'))
        return (
            path if key not in self._repeated else path._replace(name=self._repeated[key] + _safe(str(meta.image_id)))
        )

    def writable(self, path: Path) -> Path:
        """Return `path`, whose folder is made. Raises ConfigError when it is a file that the data sets read."""
        folder = os.path.realpath(path.parent)
        if os.path.join(folder, path.name) in self._inputs:
            raise ConfigError(
                f'{path.name} is a file of the data set and is not overwritten',
                where=str(path),
                why='the folder for outputs is the folder of the images or of the label maps',
                fix='choose another folder with --out or --show-dir',
            )
        if not self._warned and any(
            f'{folder}/'.startswith(f'{image_folder}/') for image_folder in self._image_folders
        ):
            self._warned = True
            logger.warning('%s lies in a folder of images: data sets that list it will find the outputs there', folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _add(self, test_set: str, folder: Path, dataset: Any) -> None:
        image_folder, files = dataset.image_files()
        self._image_folders.add(os.path.realpath(image_folder))
        counts = Counter(str(PurePosixPath(file)) for file in files)
        self._inputs |= set(
            _real_paths(
                dataset.paths() if isinstance(dataset, FilePathsDataset) else (image_folder / file for file in counts)
            )
        )
        stems = distinct_stems(list(counts))
        for (file, count), stem in zip(counts.items(), stems, strict=True):
            key = (test_set, dataset.name, str(image_folder / file))
            self._paths[key] = OutputPath(folder, stem)
            if count > 1:
                before = f'{stem}_'
                while any(other.startswith(before) for other in stems):
                    before += '_'
                self._repeated[key] = before


def distinct_stems(files: Sequence[str]) -> list[str]:
    """Return the path of each of `files` (all different, with '/' between folders) without suffix, all different.

    Files that differ in their suffix alone keep it: a.jpg and a.png become a_jpg and a_png.
    """
    stems = [str(PurePosixPath(file).with_suffix('')) for file in files]
    counts = Counter(stems)
    folders = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    taken = {stem for stem, count in counts.items() if count == 1}
    result = []
    for file, stem in zip(files, stems, strict=True):
        if counts[stem] > 1 or any(f'{stem}{suffix}' in folders for suffix in ('.jpg', '.png')):
            path = PurePosixPath(file)
            full = str(path.with_name(path.name.replace('.', '_')))
            stem, number = full, 1
            while stem in taken:
                number += 1
                stem = f'{full}_{number}'
            taken.add(stem)
        result.append(stem)
    return result


def _parts(dataset: Any, folder: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the data sets of a mixture, each with a folder of its own, that list their images."""
    if isinstance(dataset, Mixture):
        for name, part in dataset.datasets.items():
            yield from _parts(part, folder / name)
    elif isinstance(dataset, ImageFileDataset):
        yield folder, dataset


def _real_paths(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the paths with the links of their folders, which are looked up once each, followed."""
    folders: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        yield os.path.join(folders[folder], name)


def _safe(name: str) -> str:
    """Return an id as a relative path below its folder; different ids stay different."""
    escaped = re.sub(r'[\x00-\x1f<>:"\\|?*%]', lambda letter: f'%{ord(letter[0]):02X}', name)
    return '/'.join(part if part.strip('.') else part.replace('.', '%2E') or '%' for part in escaped.split('/'))
