"""Checkpoints of sharded runs on the disk: a folder `step_N.shards` with a file of each process and `run.pth`.

`run.pth` is a checkpoint (`vitdense.checkpoints.run`) whose distributed tensors are replaced by meta tensors, which
have a shape and a dtype; its `shards` are the sha256 of the files that hold their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import CheckpointError
from vitdense.storage.atomic import sha256_of
from vitdense.storage.tensor_shards import read_shards
from vitdense.storage.weight_files import GROWTH, SLACK

SUFFIX, RUN = '.shards', 'run.pth'
FOLDER = 'shard_folder'  # key of a checkpoint whose meta tensors are to be read from the folder that it names


def is_shard_folder(path: Path) -> bool:
    """Whether `path` is the checkpoint of a sharded run."""
    return path.suffix == SUFFIX and (path / RUN).is_file()


def named_tensors(content: Any, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a checkpoint with their key paths, such as `optimizer.state.0.exp_avg`."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from named_tensors(value, f'{name}.{key}' if name else str(key))
    elif isinstance(content, list | tuple):
        for row, value in enumerate(content):
            yield from named_tensors(value, f'{name}.{row}')


def map_tensors(content: Any, function: Callable[[str, Tensor], Any], name: str = '') -> Any:
    """Return `content` with `function(key, tensor)` for every tensor; keys are those of `named_tensors`."""
    if isinstance(content, Tensor):
        return function(name, content)
    if isinstance(content, Mapping):
        items = content.items()
        return {key: map_tensors(value, function, f'{name}.{key}' if name else str(key)) for key, value in items}
    if isinstance(content, list | tuple):
        return type(content)(map_tensors(value, function, f'{name}.{row}') for row, value in enumerate(content))
    return content


def shards_match(folder: Path, sums: Mapping[str, str]) -> bool:
    """Return whether the files of a folder are those that its `run.pth` names."""
    return all((folder / Path(name).name).is_file() for name in sums) and all(
        sha256_of(folder / Path(name).name) == digest for name, digest in sums.items()
    )


def check_shards(content: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError where meta tensors are larger than the shards that should hold them."""
    sizes = [value.numel() * value.element_size() for _, value in named_tensors(content) if value.is_meta]
    held = sum(path.stat().st_size for path in folder.glob('*.distcp'))
    if sum(sizes) > GROWTH * held + SLACK:
        raise CheckpointError(
            'the tensors are larger than their shards',
            where=str(folder),
            why=f'{len(sizes)} tensors take {sum(sizes)} bytes, and the shards have {held}',
            fix='use another checkpoint of the run, or copy the folder again',
        )


def fill_shards(
    content: Mapping[str, Any], make: Callable[[str, Tensor], Tensor] = lambda name, value: value
) -> dict[str, Any]:
    """Return the content of a checkpoint with the values of its meta tensors, where it has any.

    `make(key, tensor)` returns what a tensor is read into, and for others than meta tensors what takes its place;
    what it leaves on the meta device is read as a whole, on the CPU. Raises CheckpointError.
    """
    wanted: dict[str, Tensor] = {}

    def target(name: str, value: Tensor) -> Tensor:
        result = make(name, value)
        if not value.is_meta:
            return result
        wanted[name] = torch.empty_like(result, device='cpu') if result.is_meta else result
        return wanted[name]

    filled = map_tensors({key: value for key, value in content.items() if key != FOLDER}, target)
    if wanted:
        read_shards(Path(content[FOLDER]), wanted)
    return filled
