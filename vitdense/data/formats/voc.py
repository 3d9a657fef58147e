"""PASCAL VOC's labels: one XML file for each image (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc).

Coordinates of VOC are numbers of pixels from 1, inclusive: xmin = 1, xmax = W covers the image. Some programs count
from 0, which is recognised by a coordinate 0 anywhere in the folder. Objects that are `difficult` are crowds here:
ignored in evaluation, as VOC's own evaluation does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from vitdense.data.files.listing import find_files, read_list
from vitdense.data.files.splits import SPLITS
from vitdense.data.formats.content import CocoContent, sizes_of_images
from vitdense.errors import DataError

logger = logging.getLogger('vitdense')
MAX_BYTES = 2**24  # of an XML file
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


class VocObject(NamedTuple):
    """An object of an XML file."""

    name: str
    box: tuple[float, float, float, float] | None  # xmin, ymin, xmax, ymax as in the file; None: not four numbers
    difficult: bool


class VocFile(NamedTuple):
    """Content of an XML file."""

    filename: str
    size: tuple[int, int] | None  # (H, W)
    objects: list[VocObject]


def read_voc(folder: Path, images: Path, split: str | None = None) -> CocoContent:
    """Return the labels of the XML files in `folder`; file names start at the folder `images`.

    With a `split` those that `ImageSets/Main/SPLIT.txt` beside `folder` lists. Classes are the names in all files of
    the folder, sorted. Raises DataError for files that are no XML, lists that do not exist, and images that are not
    there.
    """
    names = find_files(folder, ('.xml',), what='XML files').files
    files = {name.removesuffix('.xml'): _read(folder / name, name) for name in names}
    classes = sorted({item.name for file in files.values() for item in file.objects})
    if not classes:
        raise DataError(
            'there is no object in the XML files',
            where=str(folder),
            why=f'{len(files)} files were read',
            fix='give the folder of the annotations, usually Annotations/',
        )
    boxes = [item.box for file in files.values() for item in file.objects if item.box is not None]
    first = 0 if any(0 in box for box in boxes) else 1
    logger.info('%s: pixels are counted from %d', folder.name, first)
    stems = list(files) if split is None else _listed(folder, split, files)
    paths = _images_of(stems, files, images, folder)
    content = CocoContent(classes)
    missing = [stem for stem in stems if files[stem].size is None]
    measured = dict(zip(missing, sizes_of_images(images, [paths[stem] for stem in missing]), strict=True))
    for stem in stems:
        content.add_image(paths[stem], files[stem].size or measured[stem])
        for number, item in enumerate(files[stem].objects, start=1):
            if item.box is None:
                content.add_problem(f'{stem}.xml, object {number}', f'its bndbox has not four numbers {SIDES}')
                continue
            x1, y1, x2, y2 = item.box
            content.add_object(classes.index(item.name), (x1 - first, y1 - first, x2, y2), crowd=item.difficult)
    return content


def image_lists(folder: Path) -> dict[str, Path]:
    """Return the lists of images beside a folder of XML files: train, val, test -> the file."""
    folders = [folder.parent / 'ImageSets' / 'Main', folder.parent / 'ImageSets']
    lists = {}
    for split, names in SPLITS.items():
        files = [parent / f'{name}.txt' for parent in folders for name in names]
        lists[split] = next((file for file in files if file.is_file()), None)
    if lists['val'] is not None and lists['train'] is not None and lists['train'].stem == 'trainval':
        del lists['train']  # it has the images for validation
    return {split: file for split, file in lists.items() if file is not None}


def _read(path: Path, name: str) -> VocFile:
    """Return the content of an XML file. Raises DataError for other files than VOC's."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b''
        if not data or b'<!DOCTYPE' in data or b'<!ENTITY' in data:  # entities may grow without limit
            raise ValueError('it is empty, too large, or declares entities')
        root = ElementTree.fromstring(data)
        if root.tag != 'annotation':
            raise ValueError(f'its first element is {root.tag}')
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(
            f'{name} is no annotation of PASCAL VOC',
            where=str(path),
            why=str(error),
            fix='remove the file, or export it again: <annotation><object><name>...<bndbox>...',
        ) from error
    sides = [_number(root.findtext(f'size/{side}')) for side in ('height', 'width')]
    size = (int(sides[0]), int(sides[1])) if all(side is not None and side >= 1 for side in sides) else None
    return VocFile((root.findtext('filename') or '').strip(), size, [_object(item) for item in root.iter('object')])


def _object(item: ElementTree.Element) -> VocObject:
    values = [_number(item.findtext(f'bndbox/{side}')) for side in SIDES]
    box = None if None in values else tuple(values)
    return VocObject((item.findtext('name') or '').strip(), box, (item.findtext('difficult') or '0').strip() == '1')


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _listed(folder: Path, split: str, files: Mapping[str, VocFile]) -> list[str]:
    """Return the names in the list of a split. Raises DataError when there is no list, or a name without XML file."""
    path = image_lists(folder).get(split)
    if path is None:
        raise DataError(
            f"there is no list of images for '{split}'",
            where=str(folder.parent / 'ImageSets' / 'Main'),
            why=f'lists: {", ".join(map(str, image_lists(folder).values())) or "none"}',
            fix=f'write the names of the images, one on each line, to ImageSets/Main/{split}.txt',
        )
    names = [line.split()[0] for _, line in read_list(path)]
    unknown = [name for name in names if name not in files]
    if unknown:
        raise DataError(
            f'{len(unknown)} images have no XML file, such as {unknown[0]}',
            where=str(path),
            why=f'{folder} holds {len(files)} XML files',
            fix='correct the list; names have no suffix',
        )
    return names


def _images_of(stems: Sequence[str], files: Mapping[str, VocFile], images: Path, folder: Path) -> dict[str, str]:
    """Return the image of each XML file: that of the same name, else the one that it names."""
    there = find_files(images).files
    by_stem = {name.rpartition('.')[0]: name for name in there}
    names = set(there)
    image_of = {stem: by_stem.get(stem) or files[stem].filename for stem in stems}
    lost = [stem for stem, name in image_of.items() if name not in names]
    if lost:
        raise DataError(
            f'{len(lost)} of {len(stems)} XML files have no image, such as {lost[0]}.xml',
            where=str(folder),
            why=f'there is no image {lost[0]}.* and no {files[lost[0]].filename!r} below {images}',
            fix='give the folder of the images: images=..., usually JPEGImages',
        )
    return image_of
