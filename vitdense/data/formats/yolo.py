"""YOLO's labels: a `data.yaml`, and one text file for each image with boxes or polygons.

A line is `class x y width height`, the centre and size of a box, or `class x1 y1 x2 y2 ...`, a polygon; all but the
class are shares of the image's width and height (https://docs.ultralytics.com/datasets/detect and /segment). The label
file of `images/a/b.jpg` is `labels/a/b.txt`; without a folder `images` it lies beside the image.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vitdense.data.files.listing import find_files, read_list, read_text
from vitdense.data.files.splits import SPLITS
from vitdense.data.formats.content import CocoContent, sizes_of_images
from vitdense.errors import DataError, did_you_mean

logger = logging.getLogger('vitdense')

MAX_BYTES = 2**22  # of a data.yaml
BEYOND = 1.01  # shares up to here are rounding errors; boxes are cut at the image border later


def read_yolo(path: Path, split: str) -> CocoContent:
    """Return the labels of a split of the data set that a `data.yaml` describes; file names start at its folder.

    Images without a label file have no objects. Raises DataError for a file that describes no data set, has no such
    split, or leads to images outside its folder.
    """
    description = read_description(path)
    stated = description.get('path')
    if stated and not os.path.exists(path.parent / str(stated)):
        logger.warning('%s: its path, %s, does not exist: folders are looked for beside the file', path, stated)
    images = list(_images(path, description, split))
    content = CocoContent(_names(path, description), first_id=0)
    labelled = 0
    for name, size in zip(images, sizes_of_images(path.parent, images), strict=True):
        content.add_image(name, size)
        labels = path.parent / label_file(name)
        if size is not None and labels.is_file():
            labelled += 1
            _add_objects(content, labels, label_file(name), size)
    if not labelled:
        raise DataError(
            f'none of {len(images)} images has a label file',
            where=f'{path}: {split}',
            why=f'the labels of {images[0]} would be {label_file(images[0])}',
            fix='put label files into the folder labels/ beside images/, or beside the images',
        )
    return content


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of a `data.yaml`. Raises DataError when it is none."""
    import yaml  # needed for this format only

    try:
        description = yaml.safe_load(read_text(path, MAX_BYTES))
        if not isinstance(description, dict) or 'names' not in description:
            raise ValueError("it has no 'names'")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(
            f'{path.name} does not describe a YOLO data set',
            where=str(path),
            why=' '.join(str(error).split())[:200],
            fix='write names: [first, second] and train: images/train, val: images/val (folders of images)',
        ) from error
    return description


def splits_of(description: dict[str, Any]) -> dict[str, str]:
    """Return the splits of a `data.yaml`: train, val, test -> the key in the file."""
    by_split = {split: next((key for key in keys if description.get(key)), None) for split, keys in SPLITS.items()}
    return {split: key for split, key in by_split.items() if key is not None}


def label_file(image: str) -> str:
    """Return the path of the label file of an image, in the last folder `labels` where the image has `images`."""
    path = PurePosixPath(image)
    folders = list(path.parent.parts)
    if 'images' in folders:
        folders[len(folders) - 1 - folders[::-1].index('images')] = 'labels'
    return str(PurePosixPath(*folders, f'{path.stem}.txt'))


def _names(path: Path, description: dict[str, Any]) -> list[str]:
    names = description['names']
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[row] for row in range(len(names))]
    count = description.get('nc')
    if not isinstance(names, list) or not names or (isinstance(count, int) and count != len(names)):
        raise DataError(
            'names are no list of class names',
            where=f'{path}: names',
            why=f'nc is {count}, names are {str(names)[:80]}',
            fix='give one name for each class number from 0: names: [first, second]; nc may be left out',
        )
    return [str(name) for name in names]


def _images(path: Path, description: dict[str, Any], split: str) -> Iterator[str]:
    """Yield the images of a split, relative to the folder of `path`."""
    splits = splits_of(description)
    if split not in splits:
        raise DataError(
            f"there is no split '{split}'{did_you_mean(split, splits)}",
            where=str(path),
            why=f'its splits are {", ".join(splits) or "none"}',
            fix=f'add {split}: images/{split} to the file',
        )
    entries = description[splits[split]]
    for entry in entries if isinstance(entries, list) else [entries]:
        split_path = _existing(path, description, str(entry))
        if split_path.is_dir():
            files: Sequence[Path] = [split_path / name for name in find_files(split_path).files]
        else:
            lines = [line for _, line in read_list(split_path)]
            files = [_existing(path, description, line, split_path.parent) for line in lines]
        for file in files:
            yield _below(file, path)


def _existing(path: Path, description: dict[str, Any], entry: str, *folders: Path) -> Path:
    """Return the file or folder that an entry means: below `folders`, the `path` of the file, or the file's folder.

    Roboflow's exports write `../train/images` for `train/images`; that is tried last.
    """
    folder = path.parent
    stated = [folder / str(description['path'])] if description.get('path') else []
    starts = [*folders, *stated, folder]
    plain = entry.removeprefix('./')
    while plain.startswith('../'):
        plain = plain[3:]
    candidates = [*(start / entry for start in starts), *(start / plain for start in starts)]
    existing = next((candidate for candidate in candidates if os.path.exists(candidate)), None)
    if existing is None:
        raise DataError(
            f"'{entry}' does not exist",
            where=str(path),
            why='looked for ' + ', '.join(dict.fromkeys(map(str, candidates))),
            fix='give folders of images relative to the folder of data.yaml',
        )
    return existing


def _below(file: Path, path: Path) -> str:
    """Return a path relative to the folder of `path`. Raises DataError for one outside it."""
    folder = path.parent.resolve()
    absolute = file.parent.resolve() / file.name
    if not absolute.is_relative_to(folder):
        raise DataError(
            'images lie outside the folder of the data set',
            where=f'{path}: {file}',
            why='only files below the folder of data.yaml are opened',
            fix='put data.yaml into the folder that holds images and labels',
        )
    return absolute.relative_to(folder).as_posix()


def _add_objects(content: CocoContent, path: Path, name: str, size: tuple[int, int]) -> None:
    for number, line in enumerate(path.read_text(encoding='utf-8-sig', errors='replace').splitlines(), start=1):
        if line.strip():
            _add_object(content, line.split(), f'{name}:{number}', size)


def _add_object(content: CocoContent, words: Sequence[str], where: str, size: tuple[int, int]) -> None:
    """Add the object of a line, or the reason why there is none."""
    height, width = size
    try:
        label, *values = map(float, words)
    except ValueError:
        return content.add_problem(where, f'not only numbers: {" ".join(words)[:60]}')
    if not label.is_integer() or not 0 <= label < len(content.categories):
        return content.add_problem(where, f'class {words[0]} is none of 0 ... {len(content.categories) - 1}')
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return content.add_problem(where, f'{len(values)} numbers behind the class: 4 are a box, 6, 8, ... a polygon')
    if not all(math.isfinite(value) for value in values) or min(values) < 1 - BEYOND or max(values) > BEYOND:
        return content.add_problem(where, f'not all are shares of the image, from 0 to 1: {" ".join(words[1:5])}')
    if len(values) == 4:
        x, y, box_width, box_height = values
        box = (x - box_width / 2) * width, (y - box_height / 2) * height
        return content.add_object(int(label), (*box, (x + box_width / 2) * width, (y + box_height / 2) * height))
    polygon = [value * (height if index % 2 else width) for index, value in enumerate(values)]
    xs, ys = polygon[0::2], polygon[1::2]
    return content.add_object(int(label), (min(xs), min(ys), max(xs), max(ys)), polygon=polygon)
