"""Building of described models whose weights are known: without random initialisation, within a limit of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vitdense.checkpoints.descriptions import description_error
from vitdense.errors import VitDenseError, cause_of

NUMBERS, TENSORS = 16_000_000, 300  # that parts may make beyond those of their weights
aten = torch.ops.aten
RANDOM = {aten.uniform_.default, aten.normal_.default, aten.erfinv_.default}  # what initialisation fills with
NEW = 16  # times as much where a new part is built beside the described ones


class _TooLarge(Exception):
    pass


@contextlib.contextmanager
def limit_tensors(state: Mapping[str, Tensor], path: Path, *, new: bool = False) -> Iterator[None]:
    """Limit the number and size of tensors created inside to about those of the weights `state`.

    Random numbers that would fill parameters are not drawn, since the weights replace them. `new` allows for a part
    that has no weights yet, and draws them. Any error inside, except VitDenseError, becomes a CheckpointError about the
    file `path`.
    """
    numbers = sum(value.numel() for value in state.values())
    try:
        slack = NEW if new else 1
        with _Limit(2 * numbers + slack * NUMBERS, 3 * len(state) + slack * TENSORS, random=new):
            yield
    except VitDenseError:
        raise
    except _TooLarge as error:
        why = f'{error}; its weights have {numbers} numbers in {len(state)} tensors'
        raise description_error(path, 'the description asks for a larger model than the weights are', why) from None
    except (Exception, RecursionError) as error:  # values of a file fail in any way, deep inside of parts
        raise description_error(path, 'the description cannot be built', cause_of(error)) from error


class _Limit(TorchDispatchMode):
    """Runs every operation on meta tensors first, and raises for results that are too large or too many."""

    def __init__(self, numbers: int, tensors: int, *, random: bool) -> None:
        super().__init__()
        self.random = random
        self.most, self.left, self.tensors, self.operations = numbers, 2 * numbers, tensors, 20 * tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations -= args[0].shape[0] if func is torch.ops.aten.unbind.int else 1  # a row each, in Python
        if self.operations < 0:
            raise _TooLarge('it has far too many parts')
        if func in RANDOM and not self.random and isinstance(args[0], nn.Parameter):
            return args[0]
        if not (func.is_view or func._schema.is_mutable):
            self._plan(func, args, kwargs)
        return func(*args, **kwargs)

    def _plan(self, func: Any, args: Any, kwargs: Any) -> None:
        meta = {'device': torch.device('meta')} if 'device' in kwargs else {}
        try:
            inputs = tree_map(lambda leaf: leaf.to('meta') if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            outputs = func(*inputs[0], **{**inputs[1], **meta})
        except RuntimeError:
            return  # an operation that reads values: it creates none
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self.left -= leaf.numel()
                self.tensors -= 1
                if leaf.numel() > self.most or self.left < 0 or self.tensors < 0:
                    raise _TooLarge(f'a tensor of {tuple(leaf.shape)} is asked for')
