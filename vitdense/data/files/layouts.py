"""Detection of the data set layout of a folder: COCO files, label maps, or class folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vitdense.data.files.image_check import evenly_spaced
from vitdense.data.files.images import LABEL_SUFFIXES
from vitdense.data.files.listing import walk
from vitdense.data.files.opening import IMAGE_SUFFIXES, MAX_PIXELS, loaded, opened
from vitdense.data.files.splits import split_of
from vitdense.errors import DataError

Kind = Literal['coco', 'labels', 'folders']
IMAGE_FOLDERS = ('images', 'imgs', 'image', 'img', 'JPEGImages', 'leftImg8bit')
LABEL_FOLDERS = ('labels', 'masks', 'annotations', 'label', 'mask', 'SegmentationClass', 'gtFine')
UNSUPPORTED = ('.xml', '.txt')  # labels of PASCAL VOC and YOLO
LOOKED_FOR = (
    'COCO files (*.json), data.yaml of YOLO, Annotations/*.xml of PASCAL VOC, CSV files of boxes, images/ beside '
    'masks/, one folder of images for each class; in folders or files called train, val (valid, validation) and test'
)
NO_OBJECTS = ('captions', 'person_keypoints', 'panoptic', 'stuff', 'image_info')  # of COCO's own files
PEEK = 2**20  # bytes of a file that are read
SAMPLE = 8  # images that are opened
MANY_LEVELS = 64  # gray levels in one image: a photograph, no label map
_COCO_LIST = re.compile(r'"(images|annotations|categories)"\s*:\s*\[')  # a count of that name is a report's
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


class Part(NamedTuple):
    """A data set inside the folder."""

    kind: Kind
    data: Path  # a COCO file, a folder of label maps, or a folder of class folders
    images: Path | None  # the folder of the images; None: not known, or the same
    split: str | None = None  # of data that describes several


def parts_of(data: Path, images: Path | None = None, *, labels: bool = False) -> list[Part]:
    """Return the data sets at `data`: a file, or a folder of any layout; `images` is the folder of images, if known.

    With `labels` a folder holds label maps. Raises DataError for a folder in which nothing is found.
    """
    if not data.is_dir():
        return [Part('coco', data, images)]
    if labels or images is not None:
        return [Part('labels', data, images)]
    folders = sorted(path for path in data.iterdir() if path.is_dir())
    pairs = next(filter(None, (list(_pairs(root)) for root in (data, *folders))), [])
    data_sets = list(coco_files(data)) or pairs or list(_class_folders(data))
    if data_sets:
        return data_sets
    names = sorted(walk(data).files)
    images_there = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    others = [name for name in names if name.lower().endswith(UNSUPPORTED)]
    if images_there and others and _are_photographs(data, images_there):
        raise DataError(
            f'labels in {Path(others[0]).suffix} files are not read: {others[0]} and {len(others) - 1} more',
            where=str(data),
            why='YOLO labels need a data.yaml that names classes and folders, VOC labels lie in Annotations/ beside '
            'JPEGImages/, or beside the images in train/ and val/',
            fix='add data.yaml, or name the folders like that; docs/your_own_data.md shows all formats',
        )
    if images_there:
        return [Part('labels', data, None)]
    raise DataError(
        f'no labelled images in {data}',
        where=str(data),
        why=f'no image lies below it; looked for {LOOKED_FOR}',
        fix='give the folder that holds images and labels, or a COCO file, or a folder of label maps',
    )


def coco_files(root: Path) -> Iterator[Part]:
    """Yield the COCO files in `root` and in its folders, with the folders of their images."""
    files = sorted(file for pattern in ('*.json', '*/*.json') for file in root.glob(pattern) if file.is_file())
    for file in files:
        if file.name.split('_', 1)[0] in NO_OBJECTS or file.name.startswith(NO_OBJECTS):
            continue
        with open(file, 'rb') as content:
            head = content.read(PEEK).decode('utf-8', 'replace')
        if head.lstrip().startswith('{') and _COCO_LIST.search(head):
            yield Part('coco', file, _images_of(file, head, root))


def _images_of(file: Path, head: str, root: Path) -> Path | None:
    """Return the folder in which the first image lies that a COCO file names, or None."""
    match = _FILE_NAME.search(head)
    if match is None:
        return None
    try:
        name = json.loads(match[1], strict=False)
    except ValueError:  # an escape that JSON does not have: reading the whole file is an error
        return None
    folders = [file.parent, root, *sorted(path for path in root.glob('*') if path.is_dir())]
    folders += sorted(path for path in root.glob('*/*') if path.is_dir())
    split = split_of(file.stem)
    folders.sort(key=lambda folder: split is not None and split_of(folder.name) != split)  # names may be in all splits
    safe = not name.startswith('/') and '..' not in name and '\0' not in name
    return next((folder for folder in folders if safe and os.path.isfile(folder / name)), None)


def _pairs(root: Path) -> Iterator[Part]:
    """Yield folders of label maps beside folders of images: `labels/train` beside `images/train`, or `labels`."""
    images = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    labels = next((root / name for name in LABEL_FOLDERS if (root / name).is_dir()), None)
    if (
        images is None
        or labels is None
        or not any(name.lower().endswith(LABEL_SUFFIXES) for name in walk(labels).files)
    ):
        return
    splits = sorted(path.name for path in labels.iterdir() if path.is_dir() and (images / path.name).is_dir())
    if not splits:
        yield Part('labels', labels, images)
    for split in splits:
        yield Part('labels', labels / split, images / split)


def _class_folders(root: Path) -> Iterator[Part]:
    """Yield `root`, or `root/train` and the like, where it holds photographs in one folder for each class."""
    splits = [root / name for name in ('train', 'val', 'valid', 'validation', 'test') if (root / name).is_dir()]
    for folder in splits or [root]:
        names = sorted(name for name in walk(folder).files if name.lower().endswith(IMAGE_SUFFIXES) and '/' in name)
        classes = {name.split('/', 1)[0] for name in names}
        if not classes <= {*IMAGE_FOLDERS, *LABEL_FOLDERS} and _are_photographs(folder, names):
            yield Part('folders', folder, None)


def _are_photographs(root: Path, names: Sequence[str]) -> bool:
    """Whether one of a few images, evenly spaced, is a photograph."""
    indices = evenly_spaced(len(names), SAMPLE)
    return any(_is_photograph(root / names[index]) for index in indices)


def _is_photograph(path: Path) -> bool:
    """Whether an image is no label map: lossy, in colour, or with many levels of gray."""
    try:
        with opened(path, MAX_PIXELS) as image:
            if image.format in ('JPEG', 'MPO', 'WEBP', 'AVIF') or image.mode not in ('1', 'L', 'P', 'I', 'I;16'):
                return True
            return image.mode == 'L' and len(np.unique(np.asarray(loaded(image, path)))) > MANY_LEVELS
    except DataError:  # a broken file: the check itself names it
        return False
