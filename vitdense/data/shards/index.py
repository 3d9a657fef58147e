"""Index of tar shards: the place of every file in them, as arrays that loader workers share.

Shards are uncompressed tar files as those of webdataset: files of one sample, with one name and different endings,
follow each other. The index lies beside them as `index.safetensors`: names, and for each the shard, offset and size.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from vitdense.data.string_array import StringArray, texts
from vitdense.errors import DataError
from vitdense.storage.atomic import atomic_path, disk_error

INDEX = 'index.safetensors'
FORMAT = 1
FIX = 'write it again: vitdense shards --index FOLDER'


class ShardIndex(NamedTuple):
    """Files in shards, in the order of their names."""

    shards: list[str]  # file names of the shards
    lengths: list[int]  # bytes of each shard
    names: StringArray  # (N,) sorted
    shard: np.ndarray  # (N,) int32
    offset: np.ndarray  # (N,) int64 first byte of the file in its shard
    size: np.ndarray  # (N,) int64 bytes

    def row(self, name: str) -> int | None:
        """Return the row of a name, None where there is no such file."""
        row = bisect_left(range(len(self.size)), name, key=self.names.__getitem__)
        return row if row < len(self.size) and self.names[row] == name else None


def scan_shards(folder: Path) -> ShardIndex:
    """Return the index of all `*.tar` files in a folder. Raises DataError for damaged or compressed ones, and for a
    name that occurs twice.
    """
    shards = sorted(folder.glob('*.tar'))
    if not shards:
        raise DataError(
            f'no shards in {folder}',
            where=str(folder),
            why='there is no file *.tar',
            fix='give the folder of the shards, or write some: vitdense shards FOLDER OUT',
        )
    names, spans = [], array('q')  # a row of the latter: shard, offset, size
    for number, path in enumerate(shards):
        for name, offset, size in _members(path):
            names.append(name)
            spans.extend((number, offset, size))
    order = sorted(range(len(names)), key=names.__getitem__)
    table = np.frombuffer(spans, np.int64).reshape(-1, 3)[order]
    names = [names[row] for row in order]
    twice = next((row for row in range(1, len(names)) if names[row] == names[row - 1]), None)
    if twice is not None:
        raise DataError(
            f'{names[twice]!r} occurs twice in the shards',
            where=str(shards[table[twice, 0]]),
            why='a file is found by its name',
            fix='remove one of the shards',
        )
    lengths = [path.stat().st_size for path in shards]
    columns = table[:, 0].astype(np.int32), table[:, 1].copy(), table[:, 2].copy()
    return ShardIndex([path.name for path in shards], lengths, texts(names), *columns)


def _members(path: Path) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each regular file in a tar file."""
    try:
        with tarfile.open(path, 'r:') as archive:
            files = (item for item in archive if item.isreg() and not item.issparse())
            return [(item.name.removeprefix('./'), item.offset_data, item.size) for item in files]
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(
            f'{path.name} is no shard',
            where=str(path),
            why=f'it cannot be read as an uncompressed tar file: {error}',
            fix='write it again; compressed tar files have to be unpacked first',
        ) from error


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index beside its shards, atomically. Raises DiskError."""
    arrays = {'shard': index.shard, 'offset': index.offset, 'size': index.size}
    arrays |= {'names': index.names.data, 'ends': index.names.ends}
    metadata = {'format': FORMAT, 'shards': index.shards, 'lengths': index.lengths}
    path = folder / INDEX
    try:
        with atomic_path(path) as temporary:
            save_file(
                {key: np.ascontiguousarray(value) for key, value in arrays.items()},
                temporary,
                {'index': json.dumps(metadata)},
            )
    except (OSError, SafetensorError) as error:
        raise disk_error(path, error) from error


def read_index(data: bytes, where: str) -> ShardIndex:
    """Return the index with the content `data`. Raises DataError for one that is damaged, or not of this version."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])['__metadata__']
        metadata = json.loads(header['index'])
        if metadata['format'] != FORMAT:
            raise ValueError(f'its format is {metadata["format"]!r}, this version reads {FORMAT}')
        arrays = load(data)
        names = StringArray(arrays['names'], arrays['ends'])
        index = ShardIndex(
            metadata['shards'], metadata['lengths'], names, *(arrays[key] for key in ('shard', 'offset', 'size'))
        )
        _check(index)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise DataError(
            'the index of the shards cannot be read', where=where, why=str(error) or type(error).__name__, fix=FIX
        ) from error
    return index


def _check(index: ShardIndex) -> None:
    """Raise ValueError unless all places lie in the shards, and all names below the folder."""
    ends, count = index.names.ends, len(index.size)
    columns = ((index.shard, np.int32), (index.offset, np.int64), (index.size, np.int64))
    if any(column.shape != (count,) or column.dtype != kind for column, kind in columns):
        raise ValueError('its columns have different lengths')
    if index.names.data.dtype != np.uint8 or ends.dtype != np.int64 or ends.shape != (count,):
        raise ValueError('its names are no strings')
    if (np.diff(ends, prepend=0) < 0).any() or (count and ends[-1] != len(index.names.data)):
        raise ValueError('its names do not fit their lengths')
    _check_shards(index.shards, index.lengths)
    _check_names(index.names)
    if index.shard.min() < 0 or index.shard.max() >= len(index.shards) or min(index.offset.min(), index.size.min()) < 0:
        raise ValueError('a file lies in no shard')
    if (index.offset > np.array(index.lengths, np.int64)[index.shard] - index.size).any():
        raise ValueError('a file ends beyond its shard')


def _check_names(names: StringArray) -> None:
    """Raise ValueError for a name that is none below a folder: outputs of an image are called as it is."""
    starts = np.append(0, names.ends[:-1])
    if not len(names.ends) or (starts == names.ends).any():
        raise ValueError('it lists no file, or one without a name')
    content = names.data.tobytes()
    leads_out = (names.data[starts] == ord('/')).any() or b'\0' in content or b'\\' in content
    if leads_out or (b'..' in content and any('..' in name.split('/') for name in names.all())):
        raise ValueError('a name leads out of the folder')


def _check_shards(shards: Sequence[Any], lengths: Sequence[Any]) -> None:
    names = isinstance(shards, list) and all(isinstance(name, str) and name == Path(name).name for name in shards)
    whole = isinstance(lengths, list) and all(type(length) is int and 0 <= length < 2**62 for length in lengths)
    if not names or not whole or len(shards) != len(lengths):
        raise ValueError('its shards are no files beside it')
