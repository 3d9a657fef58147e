"""Matching of images and label files of two folders by the path below them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from vitdense.data.files.images import LABEL_SUFFIXES
from vitdense.data.files.listing import FileListing, find_files, log_files, read_list
from vitdense.data.files.opening import IMAGE_SUFFIXES
from vitdense.data.files.similar_names import near_match, near_name
from vitdense.data.shards.shard_files import ShardFolder
from vitdense.errors import DataError

_logger = logging.getLogger('vitdense')


def list_files(
    root: Path,
    suffixes: Sequence[str],
    *,
    what: str,
    without: Sequence[str] = (),
    follow_links: bool = False,
    checked_later: bool = False,
    log_name: str = '',
) -> dict[str, str]:
    """Return `{key: path below root}` of all files below `root` whose name ends in one of `suffixes`, sorted.

    The key is the path below `root` without the suffix, with '/' between folders. `without` are folders ('masks/') and
    endings ('_mask.png') of other files. `checked_later` is that of `find_files`; with `log_name` the numbers of files
    are logged. Raises DataError when `root` is no folder, holds no such file, or holds two files of one key.
    """
    listing = find_files(root, suffixes, what=what, follow_links=follow_links, checked_later=checked_later)
    kept, left_out = ([name for name in names if not any(_is_of(name, part) for part in without)] for names in listing)
    others, listing = len(listing.files) - len(kept), FileListing(kept, left_out)
    files: dict[str, str] = {}
    for name in listing.files:
        suffix = next(suffix for suffix in suffixes if name.lower().endswith(suffix.lower()))
        key = name[: -len(suffix)]
        if key in files:
            raise DataError(
                f'two {what} with one name: {files[key]} and {name}',
                where=str(root),
                why='images and labels are matched by their path without the suffix',
                fix="remove one of them, or say which files count: image_suffix='.jpg', label_suffix='.png'",
            )
        files[key] = name
    if not files:
        raise DataError(
            f'no {what} in {root}',
            where=str(root),
            why=f'all {others} files with their endings are of the other kind ({", ".join(without)})',
            fix='check image_suffix and label_suffix',
        )
    if log_name:
        log_files(_logger, log_name, what, root, listing, look=len(suffixes) > 1)
    return files


def _is_of(name: str, part: str) -> bool:
    """Whether a path lies in the folder `part` ('masks/'), or ends in it ('_mask.png')."""
    return name.startswith(part) if part.endswith('/') else name.lower().endswith(part.lower())


def find_pairs(
    images: Path,
    labels: Path,
    *,
    image_suffix: str | None = None,
    label_suffix: str | None = None,
    split: Path | None = None,
    follow_links: bool = False,
    name: str = '',
) -> dict[str, tuple[str, str]]:
    """Return `{key: (image below images, label file below labels)}`; the arguments are those of `SegmentationDataset`.

    In one folder, files that end in `label_suffix` are label maps and not images; where one of the two folders lies
    in the other, its files are of its own kind only.
    """
    image_suffixes = IMAGE_SUFFIXES if image_suffix is None else (image_suffix,)
    label_suffixes = LABEL_SUFFIXES if label_suffix is None else (label_suffix,)
    masks, photos = _below(images, labels), _below(labels, images)  # what is of the other kind in each folder
    if images.resolve() == labels.resolve():
        if label_suffix is None:
            _refuse_ambiguous(images, image_suffixes, label_suffixes, image_suffix)
        masks += [label_suffix] if label_suffix not in (None, image_suffix) else []
        photos += [image_suffix] if label_suffix is None and image_suffix is not None else []
    common = dict(follow_links=follow_links, log_name=name)
    later = split is not None and not follow_links
    files = list_files(images, image_suffixes, what='images', without=masks, checked_later=later, **common)
    if split is not None:
        files = read_split(split, files, images, follow_links=follow_links)
    label_files = list_files(labels, label_suffixes, what='label maps', without=photos, **common)
    pairs = match(files, label_files, where=f'{images} and {labels}')
    unused = len(label_files) - len(pairs)
    if unused and name:
        _logger.info('%s: %d label maps without an image%s are not used', name, unused, ' of the split' * bool(split))
    return pairs


def _below(folder: Path, other: Path) -> list[str]:
    """Return the path of `other` as seen from `folder`, with a '/' behind it, where it lies in it."""
    folder, other = folder.resolve(), other.resolve()
    return [f'{other.relative_to(folder).as_posix()}/'] if other != folder and other.is_relative_to(folder) else []


def _refuse_ambiguous(
    folder: Path, image_suffixes: Sequence[str], label_suffixes: Sequence[str], image_suffix: str | None
) -> None:
    """Raise DataError where files of the one folder of images and label maps could be either."""
    files = find_files(folder, image_suffixes).files
    endings = tuple(suffix.lower() for suffix in label_suffixes)
    either = [name for name in files if name.lower().endswith(endings)]
    if not either or (image_suffix and len(find_files(folder, label_suffixes).files) > len(either)):
        return
    stems = {name.rsplit('.', 1)[0]: name for name in reversed(files)}
    first = next((stems[name.rsplit('.', 1)[0]] for name in either if stems[name.rsplit('.', 1)[0]] != name), None)
    longer = Counter(  # what some names have behind others
        stem[index:] + Path(name).suffix
        for name in either
        for stem in [name.rsplit('.', 1)[0]]
        for index, letter in enumerate(stem)
        if letter in '_-. ' and stem[:index] in stems
    )
    if first is not None:  # a.jpg, a.png
        second = next(name for name in either if name != first and name.rsplit('.', 1)[0] == first.rsplit('.', 1)[0])
        what, fix = (
            f'{first} and {second}',
            f"image_suffix='{Path(first).suffix}', label_suffix='{Path(second).suffix}'",
        )
    else:
        what, ending = either[0], longer.most_common(1)[0][0] if longer else '_mask.png'
        fix = f"label_suffix='{ending}'"
    raise DataError(
        f'images and label maps lie in one folder, and nothing says which {what} is',
        where=str(folder),
        why=f'{len(either)} of {len(files)} files may be an image or a label map by their ending',
        fix=f'say what the names of label maps end in, {fix}, or keep them in a folder of their own',
    )


def match(images: Mapping[str, str], labels: Mapping[str, str], *, where: str) -> dict[str, tuple[str, str]]:
    """Return `{key: (image, label file)}` for every image. Raises DataError when an image has no label.

    A label has the key of its image, or its whole name (x.jpg, x.jpg.png). When nothing matches, what all names
    share at their end (`x_leftImg8bit`, `x_gtFine_labelTrainIds`) or beginning (`img_0`, `mask_0`) is taken off, and
    what is left is matched.
    """
    pairs = _direct(images, labels)
    if not pairs:
        for take_off in (_without_endings, _without_both):
            pairs = _direct(take_off(images), take_off(labels))
            if len(pairs) == len(images):
                _logger.info('matched %s with %s and so on in %s', *next(iter(pairs.values())), where)
                break
        else:
            pairs = {}
    if len(pairs) < len(images):
        raise _no_label(images, labels, {name for name, _ in pairs.values()}, where)
    return pairs


def _direct(images: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the pairs whose label has the key or the whole name of its image."""
    both = ((key, name, labels.get(key, labels.get(name))) for key, name in images.items())
    return {key: (name, label) for key, name, label in both if label is not None}


def _without_endings(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files under keys without what all of them end in, from a '_', '-' or '.' on: no shared last digit."""
    ending = os.path.commonprefix([key.rsplit('/', 1)[-1][::-1] for key in files])[::-1]
    starts = [index for index, letter in enumerate(ending) if letter in '_-.']
    shared = ending[starts[0] :] if starts else ''
    return {key.removesuffix(shared): name for key, name in files.items()}


def _without_both(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files under keys without what all names share at their end, and at their beginning up to a '_-.'."""
    files = _without_endings(files)
    beginning = os.path.commonprefix([key.rsplit('/', 1)[-1] for key in files])
    length = max((index + 1 for index, letter in enumerate(beginning) if letter in '_-.'), default=0)
    splits = {key: key.rsplit('/', 1) for key in files}
    return {'/'.join([*parts[:-1], parts[-1][length:]]): files[key] for key, parts in splits.items()}


def _no_label(images: Mapping[str, str], labels: Mapping[str, str], paired: set[str], where: str) -> DataError:
    """Return the error for images without label, with a likely reason."""
    missing = [name for name in images.values() if name not in paired]
    first = missing[0].rsplit('.', 1)[0]
    alike = near_name(first, labels)
    same_name = next((key for key in labels if key.rsplit('/', 1)[-1] == first.rsplit('/', 1)[-1]), None)
    if alike is not None:
        note = f'; {labels[alike]} is there, whose name is spelt in another way (case, accents, %20)'
    elif same_name is not None:
        note = f'; {labels[same_name]} is there, in another folder: images= and labels= may name different levels'
    else:
        note = ''
    return DataError(
        f'{len(missing)} of {len(images)} images have no label, such as {", ".join(missing[:3])}',
        where=where,
        why=f'labels have the same path below their folder as the image; there are {len(labels)} labels, '
        f'such as {", ".join(list(labels.values())[:3])}{note}',
        fix="add the labels, list the labelled images in split='train.txt', or give the endings in which the "
        "names differ: image_suffix='_leftImg8bit.png', label_suffix='_gtFine_labelTrainIds.png'",
    )


def read_split(path: Path, images: Mapping[str, str], root: Path, *, follow_links: bool = False) -> dict[str, str]:
    """Return the part of `images` that the text file `path` lists, one name per line, with or without the ending.

    Raises DataError for a name that is not there or leads out of `root`: a list is data that others may have written.
    """
    by_name = {name: key for key, name in images.items()}
    by_stem = {name.rsplit('.', 1)[0]: key for key, name in images.items()}
    chosen: dict[str, str] = {}
    for number, name in read_list(path):
        safe_below(root, name, where=f'{path} line {number}', follow_links=follow_links)
        key = name if name in images else by_name.get(name, by_stem.get(name))
        if key is None:
            near = near_match(root, name)
            raise DataError(
                f"'{name}' is in the split but not among the images",
                where=f'{path} line {number}',
                why=f'there is no such image below {root}' + (f'; {near}' if near else ''),
                fix=f'write names as they stand below the folder, such as {next(iter(images.values()))}',
            )
        safe_below(root, images[key], where=f'{path} line {number}', follow_links=follow_links)
        chosen[key] = images[key]
    return chosen


def safe_below(root: Path, name: str, *, where: str, follow_links: bool = False) -> Path:
    """Return `root / name` if that stays below `root`; the file need not exist. Raises DataError.

    A link that leads out of `root` is an error as well, unless `follow_links`.
    """
    plain = name.replace('\\', '/')
    leads_out = (
        '\0' in name
        or '://' in name
        or PurePosixPath(plain).is_absolute()
        or bool(PureWindowsPath(name).drive)
        or '..' in PurePosixPath(plain).parts
    )
    if plain != name and not leads_out:
        raise DataError(
            f'{name!r} has backslashes',
            where=where,
            why='Windows writes paths so; names in lists have / between folders',
            fix=f'write {plain!r}',
        )
    if isinstance(root, ShardFolder) and not leads_out:
        return root / name
    end = (root / name).resolve() if not leads_out else None
    if end is not None and (follow_links or end.is_relative_to(root.resolve())):
        return root / name
    raise DataError(
        f'{name!r} leads out of the data folder' + (f': it is a link to {end}' if end is not None else ''),
        where=where,
        why=f'names in lists must stay below {root}: no absolute paths, no .., no URLs, no links that lead out',
        fix='give the folder in which the files really lie, copy them, or write follow_links=True'
        if end is not None
        else 'write the path relative to the folder, with / between folders',
    )
