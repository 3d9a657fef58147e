"""Writing the checkpoint of a sharded run: all processes together, atomically."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitdense.checkpoints.run import bytes_of, write_checkpoint, write_failure
from vitdense.checkpoints.shard_folder import RUN, map_tensors, named_tensors
from vitdense.distributed.agreement import on_all, on_first
from vitdense.errors import DiskError
from vitdense.storage.atomic import free_bytes, sync_folder
from vitdense.storage.tensor_shards import is_distributed, write_shards


def write_sharded(path: Path, content: Mapping[str, Any], *, shards: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write `content` as the folder `path`; all processes call this together. Return the sha256 of the shards.

    The folder must be on a disk that all machines share. `shards` are those of a call with the same tensors: they are
    kept, and only the rest is written again. Raises DiskError (FullDiskError for a full disk) in all processes; then
    `path` is as it was before.
    """
    tensors = {name: value for name, value in named_tensors(content) if is_distributed(value)}
    rest = map_tensors(content, lambda name, value: _empty(value) if is_distributed(value) else value)
    if shards is not None:
        on_first(partial(write_checkpoint, path / RUN, {**rest, 'shards': dict(shards)}))
        return dict(shards)
    size = bytes_of(content)
    temporary = on_first(partial(_begin, path, size))
    try:
        digests = on_all(partial(write_shards, temporary, tensors))
        shards = {name: digest for each in digests for name, digest in each.items()}
        on_first(partial(_check_shared, temporary, shards))
        on_first(partial(write_checkpoint, temporary / RUN, {**rest, 'shards': shards}))
        on_first(partial(_replace, temporary, path))
    except OSError as error:
        raise write_failure(path, error, size) from error
    finally:
        on_first(partial(shutil.rmtree, temporary, ignore_errors=True))
    return shards


def _empty(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device='meta')


def _begin(path: Path, size: int) -> Path:
    """Return the folder that the processes write to. Raises OSError where there is no room."""
    temporary = path.with_name(f'{path.name}.tmp.{os.getpid()}')
    temporary.mkdir(parents=True)
    if free_bytes(path.parent) < size:
        temporary.rmdir()
        raise write_failure(path, OSError(errno.ENOSPC, 'there is not enough room'), size)
    return temporary


def _check_shared(folder: Path, names: Iterable[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DiskError(
            f'{len(missing)} shards of the checkpoint are not in the work directory',
            where=str(folder / missing[0]),
            why='the processes wrote to different disks: the first one does not see the files of the others',
            fix='choose a --work-dir on a disk that all machines share',
        )


def _replace(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`, after what is there, which a run that begins after a kill in between restores."""
    earlier = path.with_name(f'{path.name}.old.{os.getpid()}')
    sync_folder(temporary)
    if path.exists():
        os.rename(path, earlier)
    os.rename(temporary, path)
    sync_folder(path.parent)
    shutil.rmtree(earlier, ignore_errors=True)
