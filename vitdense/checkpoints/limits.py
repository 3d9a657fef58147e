"""Build parts that a file describes within the memory that its weights justify."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vitdense.checkpoints.descriptions import broken
from vitdense.errors import VitDenseError

NUMBERS, TENSORS = 16_000_000, 300  # that parts may make beyond those of their weights
NEW = 16  # times as much where a new part is built beside the described ones


class _TooLarge(Exception):
    pass


@contextlib.contextmanager
def limit_tensors(state: Mapping[str, Tensor], path: Path, *, new: bool = False) -> Iterator[None]:
    """Let what is built inside make about as many tensors as the weights `state` have; nothing larger is allocated.

    `new` allows for a part that has no weights yet. Numbers come out as they would without the limit. Whatever goes
    wrong inside, but for errors that have a cure already, becomes a CheckpointError about the file `path`.
    """
    numbers = sum(value.numel() for value in state.values())
    try:
        slack = NEW if new else 1
        with _Limit(2 * numbers + slack * NUMBERS, 3 * len(state) + slack * TENSORS):
            yield
    except VitDenseError:
        raise
    except _TooLarge as error:
        why = f'{error}; its weights have {numbers} numbers in {len(state)} tensors'
        raise broken(path, 'the description asks for a larger model than the weights are', why) from None
    except (Exception, RecursionError) as error:  # values of a file fail in any way, deep inside of parts
        first = (str(error).strip().splitlines() or [''])[0][:200]
        raise broken(path, 'the description cannot be built', f'{type(error).__name__}: {first}') from error


class _Limit(TorchDispatchMode):
    """Plans every operation without memory first, and refuses what is too large or too many."""

    def __init__(self, numbers: int, tensors: int) -> None:
        super().__init__()
        self.most, self.left, self.tensors, self.operations = numbers, 2 * numbers, tensors, 20 * tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations -= args[0].shape[0] if func is torch.ops.aten.unbind.int else 1  # a row each, in Python
        if self.operations < 0:
            raise _TooLarge('it has far too many parts')
        if not (func.is_view or func._schema.is_mutable):
            self._plan(func, args, kwargs)
        return func(*args, **kwargs)

    def _plan(self, func: Any, args: Any, kwargs: Any) -> None:
        meta = {'device': torch.device('meta')} if 'device' in kwargs else {}
        try:
            given = tree_map(lambda leaf: leaf.to('meta') if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            made = func(*given[0], **{**given[1], **meta})
        except (RuntimeError, NotImplementedError):
            return  # an operation that reads numbers: it makes none
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.left -= leaf.numel()
                self.tensors -= 1
                if leaf.numel() > self.most or self.left < 0 or self.tensors < 0:
                    raise _TooLarge(f'a tensor of {tuple(leaf.shape)} is asked for')
