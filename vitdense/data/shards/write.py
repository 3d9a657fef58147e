"""Writing of shards: the files of samples in tar files of limited size, and their index."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitdense.arguments import check
from vitdense.data.shards.index import INDEX, ShardIndex, scan_shards, write_index
from vitdense.errors import DataError
from vitdense.storage.atomic import atomic_path, disk_error, make_folder


class ShardMember(NamedTuple):
    """A file of a sample: its name in the shard, and its content, or the file that holds it."""

    name: str
    content: bytes | Path


def write_shards(
    folder: Path, samples: Iterable[Sequence[ShardMember]], *, max_bytes: int = 10**9, prefix: str = 'shard'
) -> ShardIndex:
    """Write samples, in their order, into `PREFIX-000000.tar`, ... of at most about `max_bytes`, and the index.

    A sample is never divided. The same samples give the same bytes. Raises DataError for files that cannot be read,
    DiskError, and ConfigError where the folder holds shards already.
    """
    fix = 'choose another folder, or remove the earlier shards'
    check(not any(folder.glob('*.tar')), 'OUT', str(folder), 'shards lie there already', fix)
    make_folder(folder)
    (folder / INDEX).unlink(missing_ok=True)
    try:
        for number, group in enumerate(_groups(samples, max_bytes)):
            path = folder / f'{prefix}-{number:06d}.tar'
            with atomic_path(path) as temporary, tarfile.open(temporary, 'w', format=tarfile.PAX_FORMAT) as archive:
                for member, data in group:
                    archive.addfile(_header(member.name, len(data)), io.BytesIO(data))
    except OSError as error:
        raise disk_error(folder, error, what='the shards') from error
    index = scan_shards(folder)
    write_index(folder, index)
    return index


def _groups(samples: Iterable[Sequence[ShardMember]], max_bytes: int) -> Iterator[Iterator[tuple[ShardMember, bytes]]]:
    """Yield for each shard its files; the samples of one are read while it is written."""
    rest = iter(samples)
    first = next(rest, None)
    while first is not None:
        state: list[Sequence[ShardMember] | None] = [first]

        def group(state: list = state) -> Iterator[tuple[ShardMember, bytes]]:
            written, sample = 0, state[0]
            while sample is not None:
                files = [(member, _read(member.content)) for member in sample]
                size = sum(len(data) + 1024 for _, data in files)  # a header, and padding to 512 bytes
                if written and written + size > max_bytes:
                    break
                written += size
                yield from files
                sample = next(rest, None)
            state[0] = sample

        yield group()
        first = state[0]


def _read(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise DataError(
            f'cannot read {content.name}', where=str(content), why=str(error), fix='check the file: check_data.py'
        ) from error


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a file, which depends on nothing else: no time and no owner."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header
