"""Which label file belongs to which picture: two folders, matched by the path below them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from vitdense.errors import DataError

_logger = logging.getLogger('vitdense')


def list_files(root: Path, suffixes: Sequence[str], *, what: str) -> dict[str, str]:
    """Return `{key: path below root}` of all files below `root` whose name ends in one of `suffixes`, sorted.

    The key is the path below `root` without the suffix, with '/' between folders. Raises DataError when `root` is no
    folder, holds no such file, or holds two files of one key.
    """
    if not root.is_dir():
        raise DataError(
            f'no folder of {what}: {root}',
            where=str(root),
            why='the folder does not exist' if not root.exists() else 'it is not a folder',
            fix='correct the path, or data_root=... of the config; relative paths start where the command runs',
        )
    files: dict[str, str] = {}
    for name in sorted(walk(root)):
        suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix.lower())), None)
        if suffix is None or len(name) == len(suffix):
            continue
        key = name[: -len(suffix)]
        if key in files:
            raise DataError(
                f'two {what} with one name: {files[key]} and {name}',
                where=str(root),
                why='pictures and labels are matched by their path without the suffix',
                fix="remove one of them, or say which files count: image_suffix='.jpg', label_suffix='.png'",
            )
        files[key] = name
    if not files:
        raise DataError(
            f'no {what} in {root}',
            where=str(root),
            why=f'no file below it ends in {" ".join(suffixes)}',
            fix='check the path, or give image_suffix / label_suffix as the files have it',
        )
    return files


def walk(root: Path) -> Iterable[str]:
    """Yield the paths below `root` of all files, with '/' between folders; what begins with a dot is left out."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        below = os.path.relpath(folder, root).replace(os.sep, '/')
        prefix = '' if below == '.' else below + '/'
        yield from (prefix + name for name in names if not name.startswith('.'))


def match(images: Mapping[str, str], labels: Mapping[str, str], *, where: str) -> dict[str, tuple[str, str]]:
    """Return `{key: (picture, label file)}` for every picture. Raises DataError when a picture has no label.

    When nothing matches, the endings that all pictures share and all labels share are taken off
    (`x_leftImg8bit`, `x_gtFine_labelTrainIds`), and what is left is matched.
    """
    if not images.keys() & labels.keys():
        image_ending, label_ending = _common_ending(images), _common_ending(labels)
        shorter_images = {key.removesuffix(image_ending): name for key, name in images.items()}
        shorter_labels = {key.removesuffix(label_ending): name for key, name in labels.items()}
        if shorter_images.keys() <= shorter_labels.keys():
            _logger.info("matched pictures '*%s' with labels '*%s' in %s", image_ending, label_ending, where)
            images, labels = shorter_images, shorter_labels
    missing = [name for key, name in images.items() if key not in labels]
    if missing:
        raise DataError(
            f'{len(missing)} of {len(images)} pictures have no label, such as {", ".join(missing[:3])}',
            where=where,
            why=f'labels have the same path below their folder as the picture; there are {len(labels)} labels, '
            f'such as {", ".join(list(labels.values())[:3])}',
            fix="add the labels, list the labelled pictures in split='train.txt', or give the endings in which the "
            "names differ: image_suffix='_leftImg8bit.png', label_suffix='_gtFine_labelTrainIds.png'",
        )
    return {key: (name, labels[key]) for key, name in images.items()}


def _common_ending(keys: Iterable[str]) -> str:
    """Return what all keys end in, from a '_', '-' or '.' on: an ending, not a shared last digit."""
    names = [key.rsplit('/', 1)[-1] for key in keys]
    ending = os.path.commonprefix([name[::-1] for name in names])[::-1]
    starts = [place for place, letter in enumerate(ending) if letter in '_-.']
    return ending[starts[0] :] if starts else ''


def read_split(path: Path, images: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the part of `images` that the text file `path` lists, one name per line, with or without the ending.

    Raises DataError for a name that is not there or leads out of `root`: a list is data that others may have written.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f'cannot read the split {path}', where=str(path), why=str(error), fix='check the path'
        ) from None
    by_name = {name: key for key, name in images.items()}
    by_stem = {name.rsplit('.', 1)[0]: key for key, name in images.items()}
    chosen: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        safe_below(root, name, where=f'{path} line {number}')
        key = name if name in images else by_name.get(name, by_stem.get(name))
        if key is None:
            raise DataError(
                f"'{name}' is in the split but not among the pictures",
                where=f'{path} line {number}',
                why=f'there is no such picture below {root}',
                fix=f'write names as they stand below the folder, such as {next(iter(images.values()))}',
            )
        safe_below(root, images[key], where=f'{path} line {number}')
        chosen[key] = images[key]
    if not chosen:
        raise DataError('the split is empty', where=str(path), why='no line holds a name', fix='list one name per line')
    return chosen


def safe_below(root: Path, name: str, *, where: str) -> Path:
    """Return `root / name` if that stays below `root`, links followed; the file need not exist. Raises DataError."""
    plain = name.replace('\\', '/')
    strange = (
        '\0' in name
        or '://' in name
        or PurePosixPath(plain).is_absolute()
        or bool(PureWindowsPath(name).drive)
        or '..' in PurePosixPath(plain).parts
    )
    if plain != name and not strange:
        raise DataError(
            f'{name!r} has backslashes',
            where=where,
            why='Windows writes paths so; names in lists have / between folders',
            fix=f'write {plain!r}',
        )
    end = (root / name).resolve() if not strange else None
    if end is not None and end.is_relative_to(root.resolve()):
        return root / name
    raise DataError(
        f'{name!r} leads out of the data folder' + (f': it is a link to {end}' if end is not None else ''),
        where=where,
        why=f'names in lists must stay below {root}: no absolute paths, no .., no URLs, no links that lead out',
        fix='give the folder in which the files really lie, or copy them'
        if end is not None
        else 'write the path relative to the folder, with / between folders',
    )
