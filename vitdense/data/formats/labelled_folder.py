"""Detection of the format and splits of a folder of labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitdense.data.files.layouts import IMAGE_FOLDERS, LABEL_FOLDERS, LOOKED_FOR, Part, coco_files, parts_of
from vitdense.data.files.splits import SPLITS, split_of
from vitdense.data.formats.csv_boxes import is_boxes
from vitdense.data.formats.voc import image_lists
from vitdense.data.formats.yolo import read_description, splits_of
from vitdense.errors import DataError, did_you_mean

ROBOFLOW = '_annotations'  # how Roboflow calls the files of its exports
CLASS_FILES = ('classes.txt', 'classes.yaml', 'classes.json', 'names.txt')
VOC_LABELS = ('Annotations', 'annotations')
VOC_IMAGES = ('JPEGImages', 'images', 'Images')


class LabelledFolder(NamedTuple):
    """A folder of labelled images: what data sets of it are built from."""

    root: Path
    task: Literal['detection', 'segmentation', 'classification']
    format: str
    splits: dict[str, dict[str, Any]]  # train, val, test -> arguments of the data set; paths start at `root`


def read_folder(root: Path) -> LabelledFolder:
    """Return format and splits of a folder. Raises DataError, with what was looked for, when none is recognised."""
    if not root.is_dir():
        parent = root.absolute().parent
        folders = [each.name for each in parent.iterdir() if each.is_dir()] if parent.is_dir() else []
        raise DataError(
            f'no folder of data: {root}',
            where=str(root.absolute()),
            why=f'it does not exist{did_you_mean(root.name, folders)}',
            fix='give the folder of your data set',
        )
    folder = _boxes_in(root) or _parts(root)
    if folder is not None:
        return folder._replace(splits={name: folder.splits[name] for name in SPLITS if name in folder.splits})
    raise DataError('no labelled images are recognised', where=str(root), why=f'looked for {LOOKED_FOR}', fix=FIX)


def with_validation(data: LabelledFolder, share: float) -> LabelledFolder:
    """Return a folder with a split for validation: its own, or the random `share` of the images for training."""
    if 'val' in data.splits or 'train' not in data.splits:
        return data
    train = data.splits['train']
    parts = {'train': {**train, 'part': (share, 1.0)}, 'val': {**train, 'part': (0.0, share)}}
    return data._replace(splits={**parts, **{name: data.splits[name] for name in data.splits if name != 'train'}})


FIX = 'name the splits like that, or write the paths into a config: docs/your_own_data.md'


def parts_to_check(data: Path, images: Path | None = None, *, labels: bool = False) -> list[Part]:
    """Return the data sets at `data`, a folder or a file of any format; see `parts_of`."""
    if data.suffix.lower() in ('.yaml', '.yml') and data.is_file():
        return [Part('coco', data, data.parent, split) for split in splits_of(read_description(data))]
    if data.is_dir() and images is None and not labels:
        folder = _boxes_in(data)
        if folder is not None:
            return [
                Part('coco', data / each['annotations'], data / each['images'], each.get('split'))
                for each in folder.splits.values()
            ]
    if data.is_dir() and images is not None and any(data.glob('*.xml')):
        return [Part('coco', data, images)]
    return parts_of(data, images, labels=labels)


def _boxes_in(root: Path) -> LabelledFolder | None:
    """Return YOLO, VOC or CSV labels in a folder. Raises DataError where a data set lies in a folder below it."""
    folder = _yolo(root) or _voc(root) or _csv(root)
    if folder is None and not any(coco_files(root)):
        _refuse_nested(root)
    return folder


def _refuse_nested(root: Path) -> None:
    """Raise DataError where a folder below `root`, such as an unpacked archive makes, is a data set with splits."""
    if any(_split_folders(root)):
        return
    for below in sorted(path for path in root.iterdir() if path.is_dir()):
        if below.name in (*IMAGE_FOLDERS, *LABEL_FOLDERS, 'Annotations'):
            continue
        splits = [split for split, _ in _split_folders(below)]
        if len(splits) > 1 or _yolo(below) or _voc(below) or _csv(below) or any(coco_files(below)):
            raise DataError(
                'the data set lies in a folder below this one',
                where=str(root),
                why=f'{below.name}/ holds {", ".join(splits) or "the files of a data set"}',
                fix=f'give {below}',
            )


def _yolo(root: Path) -> LabelledFolder | None:
    for file in sorted([*root.glob('*.yaml'), *root.glob('*.yml')]):
        try:
            splits = splits_of(read_description(file))
        except DataError:
            if file.stem == 'data':
                raise
            continue  # a file of something else
        if splits:
            arguments = {split: dict(annotations=file.name, images='', split=split) for split in splits}
            return LabelledFolder(root, 'detection', 'YOLO', arguments)
    return None


def _voc(root: Path) -> LabelledFolder | None:
    labels = next((root / name for name in VOC_LABELS if (root / name).is_dir()), root / VOC_LABELS[0])
    images = next((root / name for name in VOC_IMAGES if (root / name).is_dir()), None)
    if any(labels.glob('*.xml')):
        if images is None:
            raise DataError(
                'XML files of PASCAL VOC without images',
                where=str(labels),
                why=f'there is no folder {", ".join(VOC_IMAGES)} beside them',
                fix=f'put the images into {VOC_IMAGES[0]}/ beside {labels.name}/',
            )
        lists = image_lists(labels)
        arguments = dict(annotations=labels.name, images=images.name)
        splits = {split: arguments | dict(split=split) for split in lists}
        return LabelledFolder(root, 'detection', 'PASCAL VOC', splits or {'train': arguments})
    folders = {split: folder for split, folder in _split_folders(root) if any(folder.glob('*.xml'))}
    splits = {split: dict(annotations=folder.name, images=folder.name) for split, folder in folders.items()}
    return LabelledFolder(root, 'detection', 'PASCAL VOC (XML beside images)', splits) if splits else None


def _csv(root: Path) -> LabelledFolder | None:
    splits = {}
    for split, folder in _split_folders(root):
        file = next(iter(sorted(folder.glob(f'{ROBOFLOW}*.csv'))), None)
        if file is not None:
            splits[split] = dict(annotations=f'{folder.name}/{file.name}', images=folder.name)
    files = sorted(root.glob('*.csv'))
    for file in files:
        split = split_of(file.stem.replace('labels', ''))
        if split is not None and split not in splits:
            images = next((name for name in ('images', split, *SPLITS[split]) if (root / name).is_dir()), '')
            splits[split] = dict(annotations=file.name, images=images)
    boxes = [] if splits else [file for file in files if is_boxes(file)]
    if len(boxes) == 1:
        folder = next((name for name in VOC_IMAGES if (root / name).is_dir()), '')
        splits['train'] = dict(annotations=boxes[0].name, images=folder)
    return LabelledFolder(root, 'detection', 'CSV of boxes', splits) if splits else None


def _parts(root: Path) -> LabelledFolder | None:
    """Return COCO files, label maps or class folders."""
    parts = [part for part in parts_of(root) if part.kind != 'labels' or part.images is not None]
    if not parts:
        return None
    kind = parts[0].kind
    splits: dict[str, dict[str, Any]] = {}
    for part in parts:
        relative = part.data.relative_to(root)
        split = split_of(relative.stem) or split_of(relative.parent.name) or ('train' if len(parts) == 1 else None)
        if split is not None and part.kind == kind and split not in splits:
            splits[split] = _arguments(root, part)
    if not splits:
        return None
    roboflow = kind == 'coco' and all(ROBOFLOW in part.data.name for part in parts)
    names = {'coco': 'Roboflow COCO' if roboflow else 'COCO', 'labels': 'images and masks', 'folders': 'class folders'}
    tasks = {'coco': 'detection', 'labels': 'segmentation', 'folders': 'classification'}
    return LabelledFolder(root, tasks[kind], names[kind], splits)


def _arguments(root: Path, part: Part) -> dict[str, Any]:
    data = part.data.relative_to(root).as_posix()
    images = '' if part.images is None else part.images.relative_to(root).as_posix()
    if part.kind == 'coco':
        return dict(annotations=data, images=images)
    if part.kind == 'folders':
        return dict(folder=data)
    classes = class_file(root)
    if classes is None:
        raise DataError(
            'nothing names the classes of the masks',
            where=str(root),
            why=f'there is no {" and no ".join(CLASS_FILES)}',
            fix='write classes.txt, one name on each line: line 1 is the class of the pixels that are 0',
        )
    return dict(images=images, labels=data, classes=classes.name)


def class_file(root: Path) -> Path | None:
    """Return the file in `root` that names the classes of its label maps, where there is one."""
    return next((root / name for name in CLASS_FILES if (root / name).is_file()), None)


def _split_folders(root: Path) -> Iterator[tuple[str, Path]]:
    for split, names in SPLITS.items():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is not None:
            yield split, folder
