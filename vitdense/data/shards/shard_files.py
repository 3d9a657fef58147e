"""Folders whose files lie in shards, on a disk or in an object store, and are read by their offset.

A `ShardFolder` stands where a data set has the path of a folder: `folder / name` is a file of it. Every file is read by
itself, so that any order of samples is possible, and the same one as from files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from vitdense.data.shards.index import INDEX, ShardIndex, read_index
from vitdense.errors import DataError

MAX_INDEX = 2**34  # bytes


def data_folder(root: str | Path, name: str | Path) -> Path | ShardFolder:
    """Return the folder `name`, which starts at `root`; a `ShardFolder` where it holds an index, or is a URL."""
    if '://' in str(name):
        return ShardFolder(str(name).rstrip('/'))
    path = Path(root) / name
    return ShardFolder(str(path)) if (path / INDEX).is_file() else path


class ShardFolder:
    """The files in the shards of `location`, a folder or a URL of fsspec (`s3://bucket/train`).

    Raises DataError for an index that is missing or damaged, and for shards that are not those of the index.
    """

    def __init__(self, location: str) -> None:
        self.location, self.remote = location, '://' in location
        self._stores: dict[int, tuple[Any, str]] = {}  # by process
        where = f'{location}/{INDEX}'
        try:
            data = self._content(INDEX)
        except Exception as error:  # every object store has errors of its own
            raise DataError(
                f'cannot read the index of the shards in {location}',
                where=where,
                why=f'{type(error).__name__}: {error}',
                fix='give the folder that `vitdense shards` wrote; of a store, see that fsspec can read it:\n'
                f'python -c "import fsspec; print(fsspec.open(\'{where}\').open().read(8))"',
            ) from error
        self.index: ShardIndex = read_index(data, where)
        if not self.remote:
            self._check_lengths()

    @property
    def name(self) -> str:
        return PurePosixPath(self.location).name

    def __truediv__(self, name: str | Path) -> ShardFile:
        return ShardFile(self, str(name))

    def __contains__(self, name: str) -> bool:
        return self.index.row(name) is not None

    def __str__(self) -> str:
        return self.location

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f'ShardFolder({self.location!r})'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardFolder) and other.location == self.location

    def __hash__(self) -> int:
        return hash(self.location)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_stores': {}}

    def resolve(self) -> ShardFolder:
        return self

    def is_relative_to(self, other: object) -> bool:
        return self == other

    def files(self) -> list[str]:
        """Return the names of all files, sorted."""
        return list(self.index.names.all())

    def paths(self) -> Iterator[Path]:
        """Yield the shards and the index."""
        return (Path(self.location) / name for name in (*self.index.shards, INDEX))

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises OSError where that is not possible."""
        row = self.index.row(name)
        if row is None:
            raise FileNotFoundError(f'no shard of {self.location} holds it')
        shard = self.index.shards[self.index.shard[row]]
        offset, size = int(self.index.offset[row]), int(self.index.size[row])
        data = self._range(shard, offset, offset + size)
        if len(data) != size:
            raise OSError(f'{shard} ends before it: {len(data)} of {size} bytes')
        return data

    def _range(self, shard: str, start: int, stop: int) -> bytes:
        if not self.remote:
            with open(Path(self.location) / shard, 'rb') as file:
                file.seek(start)
                return file.read(stop - start)
        store, base = self._store
        try:
            return store.cat_file(f'{base}/{shard}', start=start, end=stop)
        except Exception as error:  # every object store has errors of its own
            raise OSError(f'{shard}: {type(error).__name__}: {error}') from error

    def _content(self, name: str) -> bytes:
        if self.remote:
            store, base = self._store
            return store.cat_file(f'{base}/{name}')
        path = Path(self.location) / name
        if path.stat().st_size > MAX_INDEX:
            raise ValueError(f'it has more than {MAX_INDEX:,} bytes')
        return path.read_bytes()

    @property
    def _store(self) -> tuple[Any, str]:
        """The file system of fsspec and the path in it, of this process: connections cannot be shared."""
        if os.getpid() not in self._stores:
            from fsspec.core import url_to_fs  # needed for URLs only

            self._stores = {os.getpid(): url_to_fs(self.location)}
        return self._stores[os.getpid()]

    def _check_lengths(self) -> None:
        for shard, length in zip(self.index.shards, self.index.lengths, strict=True):
            path = Path(self.location) / shard
            actual = path.stat().st_size if path.is_file() else None
            if actual != length:
                raise DataError(
                    f'{shard} is not the shard of the index',
                    where=str(path),
                    why='there is no such file'
                    if actual is None
                    else f'it has {actual:,} bytes, the index says {length:,}',
                    fix='copy the shards again, or write the index again: vitdense shards --index FOLDER',
                )


class ShardFile:
    """A file in a shard, with the parts of the interface of a path that data sets use."""

    def __init__(self, folder: ShardFolder, relative: str) -> None:
        self.folder, self.relative = folder, relative

    @cached_property
    def name(self) -> str:
        return PurePosixPath(self.relative).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.relative).suffix

    def read_bytes(self) -> bytes:
        """Return the content. Raises OSError."""
        return self.folder.read(self.relative)

    def __str__(self) -> str:
        return f'{self.folder}/{self.relative}'

    __fspath__ = __str__
