"""Cache of parsed COCO annotation files: flat arrays, mapped into memory and shared by all workers.

It lies in the user's cache folder (`$VITDENSE_CACHE`, `$XDG_CACHE_HOME/vitdense` or `~/.cache/vitdense`), never beside
the data, and holds numbers and strings only. It is valid while size, times and inode of the annotation file are
unchanged; otherwise the SHA-256 of the content decides.
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

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo
from vitdense.data.coco.parse import read_coco
from vitdense.data.string_array import StringArray
from vitdense.storage.atomic import atomic_path, cache_folder

MAGIC = b'vitdense coco 4\n'
LEAST = 8_000_000  # bytes; a smaller annotation file is read in less than a second
SETTLED = 2_000_000_000  # ns; a file may change again within one tick of its clock, and some clocks tick slowly
ALIGN = 64
_logger = logging.getLogger('vitdense')


def open_coco(
    path: Path, *, masks: bool = False, cache: str | Path | bool = True, least: int = LEAST
) -> tuple[CocoArrays, CocoFileInfo]:
    """Return what `read_coco` returns, from the cache if valid; else write the cache.

    `cache` is its folder (True: the user's cache folder; False: no cache). Files below `least` bytes are not cached. A
    cache that cannot be written is logged. Raises DataError as `read_coco` does.
    """
    try:
        before = os.stat(path)
    except OSError:
        return read_coco(path, masks=masks)  # which says why it cannot be read
    if cache is False or before.st_size < least:
        return read_coco(path, masks=masks)
    cache_path = (cache_folder() if cache is True else Path(cache)) / _name(path, masks)
    cached = _open(cache_path, path)
    if cached is not None:
        return cached
    read_at = time.time_ns()
    data = path.read_bytes()
    arrays, info = read_coco(path, masks=masks, data=data)
    stamp = {**_stamp(before), 'read_at': read_at, 'sha256': hashlib.sha256(data).hexdigest()}
    del data
    if _stamp(os.stat(path)) != _stamp(before):
        return arrays, info  # it changed while it was read
    try:
        _write(cache_path, arrays, info, stamp)
    except OSError as error:
        _logger.info('no cache for %s: %s', path.name, error)
        return arrays, info
    return _open(cache_path, path) or (arrays, info)


def _name(path: Path, masks: bool) -> str:
    """Return the name of the cache of a file, one for each path."""
    code = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return f'{path.stem}-{code}{"-masks" if masks else ""}.coco'


def _stamp(state: os.stat_result) -> dict[str, int]:
    names = ('st_size', 'st_mtime_ns', 'st_ctime_ns', 'st_ino', 'st_dev')
    return {name: getattr(state, name) for name in names}


def _is_of(stamp: Mapping[str, Any], path: Path) -> bool:
    """Whether the file is unchanged since the stamp was taken."""
    now = _stamp(os.stat(path))
    if now['st_size'] != stamp['st_size']:
        return False
    changed = max(now['st_mtime_ns'], now['st_ctime_ns'])
    if all(now[name] == stamp[name] for name in now) and changed + SETTLED < stamp['read_at']:
        return True
    with open(path, 'rb') as file:  # copied, moved, touched, or read so soon after a change that another may hide
        return hashlib.file_digest(file, 'sha256').hexdigest() == stamp['sha256']


# ----------------------------------------------------------------------------------------------------------- format


def _write(cache_path: Path, arrays: CocoArrays, info: CocoFileInfo, stamp: Mapping[str, Any]) -> None:
    """Write magic, length of the header, header (JSON) and the arrays, atomically."""
    flat = _flat(arrays)
    table, offset = {}, 0
    for name, array in flat.items():
        table[name] = [array.dtype.str, list(array.shape), offset]
        offset += -(-array.nbytes // ALIGN) * ALIGN
    header = json.dumps({'stamp': stamp, 'info': info._asdict(), 'table': table, 'bytes': offset}).encode()
    header += b' ' * (-(len(MAGIC) + 8 + len(header)) % ALIGN)
    cache_path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(cache_path) as temporary, open(temporary, 'wb') as file:
        file.write(MAGIC + len(header).to_bytes(8, 'little') + header)
        for array in flat.values():
            file.write(np.ascontiguousarray(array).tobytes() + b'\0' * (-array.nbytes % ALIGN))


def _open(cache_path: Path, path: Path) -> tuple[CocoArrays, CocoFileInfo] | None:
    """Return the content of the cache of `path`, mapped into memory; None where it is missing, outdated or broken."""
    try:
        with open(cache_path, 'rb') as file:
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
        return _unflat(flat), CocoFileInfo(**header['info'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _flat(arrays: CocoArrays) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in arrays._asdict().items():
        strings = isinstance(value, StringArray)
        flat |= {f'{name}.data': value.data, f'{name}.ends': value.ends} if strings else {name: value}
    return flat


def _unflat(flat: Mapping[str, np.ndarray]) -> CocoArrays:
    return CocoArrays(
        **{
            name: flat[name] if name in flat else StringArray(flat[f'{name}.data'], flat[f'{name}.ends'])
            for name in CocoArrays._fields
        }
    )
