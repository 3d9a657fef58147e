"""Named tensors as a folder of shards, written and read by `torch.distributed.checkpoint`.

Every process writes the parts that it holds of distributed tensors into a file of its own; any number of processes
reads them again. The description of the shards is a pickle, of which only the classes named here are accepted.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from vitdense.errors import CheckpointError
from vitdense.storage.atomic import sha256_of

DESCRIPTION = '.metadata'
_FILE = re.compile(r'__\d+_\d+\.distcp')
_DTYPES = frozenset(str(value).removeprefix('torch.') for value in vars(torch).values() if type(value) is torch.dtype)
_ALLOWED = {
    'torch': _DTYPES | {'Size'},
    'torch.serialization': {'_get_layout'},
    'torch.distributed.checkpoint.filesystem': {'_StorageInfo'},
    'torch.distributed.checkpoint.metadata': {
        'BytesStorageMetadata',
        'ChunkStorageMetadata',
        'Metadata',
        'MetadataIndex',
        'StorageMeta',
        'TensorProperties',
        'TensorStorageMetadata',
        '_MEM_FORMAT_ENCODING',
    },
}


def is_distributed(value: Tensor) -> bool:
    """Whether `value` is divided among processes. While the module of such tensors is not imported, which takes time,
    there are none.
    """
    module = sys.modules.get('torch.distributed.tensor')
    return module is not None and isinstance(value, module.DTensor)


def local(value: Tensor) -> Tensor:
    """Return the part of a distributed tensor that this process holds, sharing memory; any other tensor as it is."""
    return value.detach().to_local() if is_distributed(value) else value


def whole(value: Tensor) -> Tensor:
    """Return a distributed tensor gathered from all processes, which call this together; any other tensor as it is."""
    return value.detach().full_tensor() if is_distributed(value) else value


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write distributed tensors into `folder`, flushed to disk; all processes call this together.

    Return the sha256 of the files that this process wrote. Raises OSError, in all processes, where a disk refuses.
    """
    from torch.distributed.checkpoint import FileSystemWriter, save  # slow to import, and seldom needed
    from torch.distributed.checkpoint.api import CheckpointException

    class Writer(FileSystemWriter):
        """Leaves the path of the folder, which may move, out of the description of the shards."""

        def storage_meta(self) -> None:
            return None

    try:
        with _quiet():
            save(dict(tensors), storage_writer=Writer(str(folder), sync_files=True))
    except CheckpointException as failure:  # of any process
        errors = [error for error, _ in failure.failures.values()]
        causes = [cause for error in errors for cause in (error, error.__context__) if isinstance(cause, OSError)]
        if not causes:
            raise RuntimeError(f'the shards were not written: {errors[0]}') from failure
        raise OSError(causes[0].errno, causes[0].strerror or str(causes[0])) from failure
    rank = distributed.get_rank()
    files = [*folder.glob(f'__{rank}_*.distcp'), *([folder / DESCRIPTION] if rank == 0 else [])]
    return {path.name: sha256_of(path) for path in files}


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` from `folder`, by name. Where some are distributed, all processes call this together; else one
    does so alone. Raises CheckpointError.
    """
    from torch.distributed.checkpoint import FileSystemReader, Metadata, load
    from torch.distributed.checkpoint.api import CheckpointException  # a BaseException
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        """Takes the description of the shards as it was read, without running code."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    alone = not any(is_distributed(value) for value in tensors.values())
    try:
        metadata = _read_description(folder / DESCRIPTION)
        with _quiet():
            load(dict(tensors), storage_reader=Reader(str(folder)), no_dist=alone)
    except (Exception, CheckpointException) as error:  # foreign bytes fail in any way
        raise CheckpointError(
            f"the shards in '{folder.name}' cannot be read",
            where=str(folder),
            why=(str(error).strip().splitlines() or [type(error).__name__])[-1][:300],
            fix='use another checkpoint of the run, or copy the folder again',
        ) from error


def _read_description(path: Path) -> Any:
    """Return the description of shards. Raises UnpicklingError for objects of other classes, and other files."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name not in _ALLOWED.get(module, ()):
                raise pickle.UnpicklingError(f'it would run code: {module}.{name}')
            return super().find_class(module, name)

    metadata = Unpickler(io.BytesIO(path.read_bytes())).load()
    outside = [info.relative_path for info in metadata.storage_data.values() if not _FILE.fullmatch(info.relative_path)]
    if outside:
        raise pickle.UnpicklingError(f'it names the file {outside[0]!r}')
    return metadata


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's warnings about processes that read alone, and about its own deprecated functions."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
