"""Listing of files below a folder, and reading of text files that list names."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from logging import Logger
from pathlib import Path
from typing import NamedTuple

from vitdense.data.files.opening import IMAGE_SUFFIXES, begins_like_image
from vitdense.data.shards.shard_files import ShardFolder
from vitdense.errors import DataError

MAX_TEXT = 2**28  # bytes of a table of names
MAX_LIST = 2**34  # bytes of a list of files: 14 million lines have 10**9
LOOKED_AT = 8  # files of one unknown ending whose first bytes are read


class FolderListing(NamedTuple):
    """All files below a folder, sorted, with '/' between folders; names that begin with a dot are left out."""

    files: list[str]
    outside: dict[str, str]  # links that lead out of the folder, and where to: they are not among the files
    repeated: list[str]  # links to folders that are listed already, a loop for example: they are not followed


class FileListing(NamedTuple):
    """Files below a folder: those with the wanted suffixes, and the others."""

    files: list[str]
    left_out: list[str]


def walk(root: Path, *, follow_links: bool = False, on_error: Callable[[OSError], None] | None = None) -> FolderListing:
    """Return all files below `root`; with `follow_links` also those that links lead to from elsewhere.

    Every folder is listed once, under its own name where it has one below `root`. A folder that cannot be listed is
    passed over after a call of `on_error`, or raises DataError without it.
    """
    base = os.path.realpath(root)
    result, links, visited = FolderListing([], {}, []), [], set()
    _list_folder(base, '', result.files, links, visited, on_error)
    while links:
        name, target = links.pop(0)
        inside = target == base or target.startswith(os.path.join(base, ''))
        if not inside and not follow_links:
            result.outside[name] = target
        elif not os.path.isdir(target):
            result.files.append(name)  # also a broken link: reading it is an error
        elif target in visited:
            result.repeated.append(name)
        else:
            _list_folder(target, name + '/', result.files, links, visited, on_error)
    return FolderListing(sorted(result.files), result.outside, result.repeated)


def _list_folder(
    folder: str,
    prefix: str,
    files: list[str],
    links: list[tuple[str, str]],
    visited: set[str],
    on_error: Callable[[OSError], None] | None,
) -> None:
    """Add what lies in the folders below the real path `folder`; links are put aside, with their targets."""
    open_folders = [(folder, prefix)]
    while open_folders:
        folder, prefix = open_folders.pop()
        if folder in visited:  # a link led to a folder above
            continue
        visited.add(folder)
        try:
            with os.scandir(folder) as listing:
                entries = sorted((entry for entry in listing if not entry.name.startswith('.')), key=lambda e: e.name)
        except OSError as error:
            if on_error is not None:
                on_error(error)
                continue
            raise DataError(
                'a folder cannot be listed', where=folder, why=str(error), fix='check the permissions of the folder'
            ) from error
        for entry in entries:
            if entry.is_symlink():
                links.append((prefix + entry.name, os.path.realpath(entry.path)))
            elif entry.is_dir(follow_symlinks=False):
                open_folders.append((entry.path, f'{prefix}{entry.name}/'))
            else:
                files.append(prefix + entry.name)


def check_folder(root: Path | ShardFolder, what: str) -> None:
    """Raise DataError unless `root`, the folder of `what`, is a folder."""
    if not isinstance(root, ShardFolder) and not root.is_dir():
        raise DataError(
            f'no folder of {what}: {root}',
            where=str(root),
            why='the folder does not exist' if not root.exists() else 'it is not a folder',
            fix='correct the path, or data_root=... of the config; relative paths start where the command runs',
        )


def find_files(
    root: Path | ShardFolder,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    *,
    what: str = 'images',
    follow_links: bool = False,
    checked_later: bool = False,
) -> FileListing:
    """Return the files below `root` whose names end in one of `suffixes`, and those that do not.

    With `checked_later` links that lead out of `root` are listed: those that a split chooses are refused then. Raises
    DataError where `root` is no folder or holds no such file, and for links that lead out of it.
    """
    check_folder(root, what)
    shards = isinstance(root, ShardFolder)
    walked = FolderListing(root.files(), {}, []) if shards else walk(root, follow_links=follow_links)
    if checked_later:
        walked.files.extend(walked.outside)
    elif walked.outside:
        name, target = next(iter(walked.outside.items()))
        more = f' ({len(walked.outside):,} such links)' if len(walked.outside) > 1 else ''
        raise DataError(
            f'{name!r} leads out of the folder of {what}: it is a link to {target}{more}',
            where=str(root),
            why='a data set reads nothing outside of its folders, unless follow_links=True',
            fix='give the folder in which the files really lie, copy them, or write follow_links=True',
        )
    endings = tuple(suffix.lower() for suffix in suffixes)
    names = sorted(walked.files)
    wanted = {name for name in names for end in endings if name.lower().endswith(end) and len(name) > len(end)}
    listing = FileListing([name for name in names if name in wanted], [name for name in names if name not in wanted])
    if not listing.files:
        others = f'; there are {count_endings(listing.left_out)}' if listing.left_out else ''
        raise DataError(
            f'no {what} in {root}',
            where=str(root),
            why=f'no file below it ends in {" ".join(suffixes)}{others}',
            fix='check the path, or the endings of the files (image_suffix / label_suffix)'
            + ('; label maps are PNG files: JPEG changes their numbers' if 'label' in what else ''),
        )
    return listing


def count_endings(names: Iterable[str]) -> str:
    """Return the number of files of each suffix as text: '12 .txt, 1 .mp4 and 3 without ending'."""
    counts = Counter(os.path.splitext(name)[1].lower() for name in names)
    words = [f'{count:,} {ending}' for ending, count in counts.most_common(6) if ending]
    rest = sum(counts.values()) - sum(counts[ending] for ending, _ in counts.most_common(6) if ending) - counts['']
    words += [f'{rest:,} others'] * bool(rest) + [f'{counts[""]:,} without ending'] * bool(counts[''])
    return ' and '.join([', '.join(words[:-1]), words[-1]] if len(words) > 1 else words)


def log_files(logger: Logger, name: str, what: str, root: Path, listing: FileListing, *, look: bool = True) -> None:
    """Log how many files are listed and left out; warn (with `look`) when some of the latter begin like images."""
    left_out = f'; left out: {count_endings(listing.left_out)}' if listing.left_out else ''
    logger.info('%s: %d %s in %s%s', name, len(listing.files), what, root, left_out)
    unlisted = images_among(root, listing.left_out) if look else []
    if unlisted:
        text = '%s: %s in %s begin like images but are left out, such as %s: %s if they are %s'
        lossy = 'label' in what and any(file.lower().endswith(IMAGE_SUFFIXES) for file in unlisted)
        logger.warning(
            text,
            name,
            count_endings(unlisted),
            root,
            unlisted[0],
            'export them anew as PNG' if lossy else 'rename them',
            what,
        )


def images_among(root: Path, names: Iterable[str]) -> list[str]:
    """Return those of the files `names` whose ending is that of a file that begins like an image."""
    by_ending: dict[str, list[str]] = {}
    for name in names:
        by_ending.setdefault(os.path.splitext(name)[1].lower(), []).append(name)
    alike = [group for group in by_ending.values() if any(begins_like_image(root / n) for n in group[:LOOKED_AT])]
    return [name for group in alike for name in group]


def as_text(name: str) -> str:
    """Return a file name as text that can be printed, drawn and saved: bytes that are not UTF-8 as \\xe9."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def read_list(path: Path) -> list[tuple[int, str]]:
    """Return (number, text) of each line of a text file that is not blank. Raises DataError, also for none."""
    return list(iterate_list(path))


def iterate_list(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what `read_list` returns, of a file that may be larger than the memory."""
    empty = True
    try:
        check_regular(path, MAX_LIST)
        with open(path, encoding='utf-8-sig') as file:
            for number, line in enumerate(file, start=1):
                if line := line.strip():
                    empty = False
                    yield number, line
    except (OSError, ValueError) as error:
        why = str(error) if not isinstance(error, UnicodeDecodeError) else _not_utf8(error)
        raise DataError(f'cannot read {path}', where=str(path), why=why, fix='check the path') from None
    if empty:
        raise DataError(
            f'{path.name} is empty', where=str(path), why='no line holds a name', fix='list one name a line'
        )


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """Return a text file in UTF-8. Raises ValueError or OSError, also for what is no regular file or too large."""
    check_regular(path, most)
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error)) from None


def check_regular(path: Path, most: int) -> None:
    """Raise ValueError or OSError unless `path` is a regular file of at most `most` bytes."""
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError('it is a folder, a pipe or a device, not a regular file')
    if state.st_size > most:
        raise ValueError(f'it has {state.st_size:,} bytes, and the limit is {most:,}')


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f'it is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})'
