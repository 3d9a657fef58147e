"""Annotation files that were read once open again at once: flat arrays, mapped into memory and shared by all workers.

A cache lies in the user's cache folder (`$VITDENSE_CACHE`, `$XDG_CACHE_HOME/vitdense` or `~/.cache/vitdense`), never
beside the data. It holds numbers and words only, and is used only for the very file it was made from: size, times and
inode are those of then; in any doubt the content is compared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo, Texts
from vitdense.data.coco.parse import read_coco
from vitdense.errors import DataError
from vitdense.storage.atomic import atomic_path, cache_folder

MAGIC = b'vitdense coco 3\n'
LEAST = 8_000_000  # bytes; a smaller annotation file is read in less than a second
SETTLED = 2_000_000_000  # ns; a file may change again within one tick of its clock, and some clocks tick slowly
ALIGN = 64
_logger = logging.getLogger('vitdense')


def open_coco(
    path: Path, *, masks: bool = False, cache: str | Path | bool = True, least: int = LEAST
) -> tuple[CocoArrays, CocoFileInfo]:
    """Return what `read_coco` returns, from the cache where there is one, and leave one for the next time.

    `cache` is the folder for it (True: the user's cache folder; False: none). Files below `least` bytes are simply
    read. A cache that cannot be written costs a line in the log. Raises DataError as `read_coco` does.
    """
    try:
        before = os.stat(path)
    except OSError as error:
        raise DataError(
            f'cannot read {path.name}', where=str(path), why=str(error), fix='check the path, and data_root=...'
        ) from None
    if cache is False or before.st_size < least:
        return read_coco(path, masks=masks)
    place = (cache_folder() if cache is True else Path(cache)) / _name(path, masks)
    found = _open(place, path)
    if found is not None:
        return found
    read_at = time.time_ns()
    data = path.read_bytes()
    arrays, facts = read_coco(path, masks=masks, data=data)
    stamp = {**_stamp(before), 'read_at': read_at, 'sha256': hashlib.sha256(data).hexdigest()}
    del data
    if _stamp(os.stat(path)) != _stamp(before):
        return arrays, facts  # it changed under our hands
    try:
        _write(place, arrays, facts, stamp)
    except OSError as error:
        _logger.info('no cache for %s: %s', path.name, error)
        return arrays, facts
    return _open(place, path) or (arrays, facts)


def _name(path: Path, masks: bool) -> str:
    """Return the name of the cache of a file: one for each path, so that a new content replaces the old."""
    code = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return f'{path.stem}-{code}{"-masks" if masks else ""}.coco'


def _stamp(state: os.stat_result) -> dict[str, int]:
    names = ('st_size', 'st_mtime_ns', 'st_ctime_ns', 'st_ino', 'st_dev')
    return {name: getattr(state, name) for name in names}


def _is_of(stamp: Mapping[str, Any], path: Path) -> bool:
    """Whether the file still is what the stamp was taken from."""
    now = _stamp(os.stat(path))
    if now['st_size'] != stamp['st_size']:
        return False
    changed = max(now['st_mtime_ns'], now['st_ctime_ns'])
    if all(now[name] == stamp[name] for name in now) and changed + SETTLED < stamp['read_at']:
        return True
    with open(path, 'rb') as file:  # copied, moved, touched, or read so soon after a change that another may hide
        return hashlib.file_digest(file, 'sha256').hexdigest() == stamp['sha256']


# ----------------------------------------------------------------------------------------------------------- format


def _write(place: Path, arrays: CocoArrays, facts: CocoFileInfo, stamp: Mapping[str, Any]) -> None:
    """Write magic, length of the header, header (JSON), and the arrays; the file appears when it is whole."""
    flat = _flat(arrays)
    table, offset = {}, 0
    for name, array in flat.items():
        table[name] = [array.dtype.str, list(array.shape), offset]
        offset += -(-array.nbytes // ALIGN) * ALIGN
    header = json.dumps({'stamp': stamp, 'facts': facts._asdict(), 'table': table, 'bytes': offset}).encode()
    header += b' ' * (-(len(MAGIC) + 8 + len(header)) % ALIGN)
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(place) as temporary, open(temporary, 'wb') as file:
        file.write(MAGIC + len(header).to_bytes(8, 'little') + header)
        for array in flat.values():
            file.write(np.ascontiguousarray(array).tobytes() + b'\0' * (-array.nbytes % ALIGN))


def _open(place: Path, path: Path) -> tuple[CocoArrays, CocoFileInfo] | None:
    """Return the content of a cache that belongs to `path`, mapped into memory; None when it does not, or is broken."""
    try:
        with open(place, 'rb') as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            length = int.from_bytes(file.read(8), 'little')
            begin = len(MAGIC) + 8 + length
            total = os.fstat(file.fileno()).st_size
            header = json.loads(file.read(length)) if begin <= total else {}
            if begin + header.get('bytes', 0) != total or not _is_of(header['stamp'], path):
                return None
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        flat = {
            name: np.ndarray(shape, dtype, memory, begin + offset)
            for name, (dtype, shape, offset) in header['table'].items()
        }
        return _folded(flat), CocoFileInfo(**header['facts'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none there, or a damaged one: the file is read again


def _flat(arrays: CocoArrays) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in arrays._asdict().items():
        flat |= {f'{name}.data': value.data, f'{name}.ends': value.ends} if isinstance(value, Texts) else {name: value}
    return flat


def _folded(flat: Mapping[str, np.ndarray]) -> CocoArrays:
    return CocoArrays(
        **{
            name: flat[name] if name in flat else Texts(flat[f'{name}.data'], flat[f'{name}.ends'])
            for name in CocoArrays._fields
        }
    )
