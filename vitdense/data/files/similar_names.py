"""Missing files of a list, and existing files with similar names."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from vitdense.data.shards.shard_files import ShardFolder

FEW_FOLDERS = 200  # that are looked into for a file of the same name


def missing_files(root: Path, names: Iterable[bytes]) -> list[str]:
    """Return the `names` (paths below `root`, '/' between folders, file system encoding) that are no files there.

    Folders are listed, which is much faster than a look at every file.
    """
    names = list(names)
    if isinstance(root, ShardFolder):
        return [name for name in map(os.fsdecode, names) if name not in root]
    by_folder: dict[bytes, list[bytes]] = defaultdict(list)
    for name in names:
        by_folder[name.rpartition(b'/')[0]].append(name)
    base, missing = os.fsencode(root), set()
    for folder, listed in by_folder.items():
        there: set[bytes] = set()
        with suppress(OSError, ValueError), os.scandir(os.path.join(base, folder)) as entries:
            there = {entry.name for entry in entries if entry.is_file()}
        absent = (name for name in listed if name.rpartition(b'/')[2] not in there)
        missing.update(name for name in absent if not _is_file(os.path.join(base, name)))  # names of any case may do
    return [os.fsdecode(name) for name in names if name in missing]


def _is_file(path: bytes | Path) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a zero byte
        return False


def near_match(root: Path, name: str) -> str:
    """Return a hint where the missing file `name` (a path below `root`) may be, '' for none.

    Compared are: other case, other Unicode form, %20 and the like, another ending, a folder that is named twice or
    missing.
    """
    if isinstance(root, ShardFolder) or not root.is_dir() or '\0' in name:
        return ''
    parts = PurePosixPath(name).parts
    existing = _walk(root, parts)
    if existing is not None:
        return f'{existing} is there{_difference(name, existing)}'
    for count in range(1, len(parts)):
        shorter = PurePosixPath(*parts[count:])
        if _is_file(root / shorter):
            above = root.parents[count - 1] if len(root.parents) >= count else root
            if _is_file(above / name):
                return f'{above / name} is there: give the folder {above}'
            return (
                f'{shorter} is there: leave out {"/".join(parts[:count])}/, or give the folder that the names start at'
            )
    if _is_file(root.parent / name):
        return f'{root.parent / name} is there: give the folder {root.parent}'
    return _in_a_folder(root, name)


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is `name` in another spelling (see `near_match`), else with another ending."""
    wanted, alike = _folded(name), None
    for other in known:
        folded = _folded(other)
        if folded == wanted:
            return other
        if alike is None and os.path.splitext(folded)[0] == os.path.splitext(wanted)[0]:
            alike = other
    return alike


def _in_a_folder(root: Path, name: str) -> str:
    with suppress(OSError), os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir())[:FEW_FOLDERS]
        for folder in folders:
            if _is_file(root / folder / name):
                return f'{folder}/{name} is there: give the folder {root / folder}, or add {folder}/ to the names'
    return ''


def _walk(root: Path, parts: tuple[str, ...]) -> str | None:
    """Return the path below `root` that is spelled nearly like `parts`, or None."""
    folder, existing = root, []
    for row, part in enumerate(parts):
        name = _entry(folder, part, last=row == len(parts) - 1)
        if name is None:
            return None
        existing.append(name)
        folder = folder / name
    return '/'.join(existing) if _is_file(folder) else None


def _entry(folder: Path, part: str, *, last: bool) -> str | None:
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    if part in names:
        return part
    wanted, stem = _folded(part), _folded(part).rpartition('.')[0]
    near = [name for name in names if _folded(name) == wanted]
    if not near and last and stem:
        near = [name for name in names if _folded(name).rpartition('.')[0] == stem]
    return min(near, default=None)


def _folded(name: str) -> str:
    return unicodedata.normalize('NFC', unquote(name)).casefold()


def _difference(name: str, existing: str) -> str:
    """Return the difference of two similar names as text."""
    if unicodedata.normalize('NFC', name) == unicodedata.normalize('NFC', existing):
        form = 'NFD' if unicodedata.is_normalized('NFD', existing) else 'NFC'
        return f' (in Unicode form {form}: accents are written in another way)'
    if unquote(name) == unquote(existing):
        return ' (with other escapes: %20 is a space)'
    if name.casefold() == existing.casefold():
        return ' (other upper and lower case)'
    same = PurePosixPath(_folded(name)).suffix == PurePosixPath(_folded(existing)).suffix
    return '' if same else ' (another ending)'
