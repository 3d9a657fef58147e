"""Selection of a state dict inside a nested checkpoint."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import CheckpointError, did_you_mean, some

logger = logging.getLogger('vitdense')

State = dict[str, Tensor]
WRAPPERS = ('state_dict', 'model', 'module', 'teacher', 'encoder')  # keys that are opened first, in this order
DEPTH = 5  # of nested checkpoints
_NO_WEIGHTS = re.compile(r'optim|sched|scaler|rng|loss|message_hub|hyper_parameters|loops|callbacks|omitted')


def split_key(path: str | Path) -> tuple[Path, str | None]:
    """Return the file that `path` names, and the KEY of a path `FILE:KEY` (None without one)."""
    whole = Path(path).expanduser()
    file, colon, key = str(whole).rpartition(':')
    return (Path(file), key) if colon and key and not whole.exists() and Path(file).is_file() else (whole, None)


def to_float32(state: Mapping[str, Tensor]) -> State:
    """Return `state` with half precision as float32."""
    halves = (torch.float16, torch.bfloat16)
    return {name: value.float() if value.dtype in halves else value for name, value in state.items()}


def find_set(raw: Any, *, key: str | None = None, where: str = '') -> State:
    """Return one state dict of a checkpoint: that under `key`, else under `WRAPPERS`, else the only one; others are
    logged.

    Raises CheckpointError when `key` leads to nothing, and when several sets are there of which none is preferred.
    """
    if key is not None:
        return _chosen(raw, key, where)
    path, inner = [], raw
    for _ in WRAPPERS:
        name = next((name for name in WRAPPERS if isinstance(inner, Mapping) and name in inner), None)
        if name is None or not isinstance(inner[name], Mapping):
            break
        path, inner = [*path, name], inner[name]
    taken, sets = '.'.join(path), dict(_sets(raw))
    if not any('.' in name for name in tensors_of(inner)):  # nothing, or a counter beside the sets
        below = {name: each for name, each in sets.items() if name != taken and name.startswith(taken)}
        if len(below) > 1:
            raise _several(below, where)
        taken, inner = next(iter(below.items()), (taken, inner))
    others = [name for name in sets if name and name != taken and taken]
    if others:
        logger.info('%s: read under %s; it also holds %s: name one as PATH:%s', where, taken, some(others), others[0])
    elif taken and not set(taken.split('.')) <= set(WRAPPERS):
        logger.info('%s: read under %s', where, taken)
    return tensors_of(inner)


def tensors_of(raw: Any) -> State:
    """Return the tensors that lie in a mapping by name; none for anything else."""
    if not isinstance(raw, Mapping):
        return {}
    return {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}


def _sets(raw: Any, path: str = '', depth: int = DEPTH) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the mappings inside a checkpoint that hold tensors by name, and their paths; no states of optimizers."""
    if not isinstance(raw, Mapping) or not depth:
        return
    if any(isinstance(name, str) and isinstance(value, Tensor) for name, value in raw.items()):
        yield path, raw
    for name, value in raw.items():
        if isinstance(name, str) and '.' not in name and not _NO_WEIGHTS.search(name.lower()):
            yield from _sets(value, f'{path}.{name}' if path else name, depth - 1)


def _chosen(raw: Any, key: str, where: str) -> State:
    """Return the set of tensors under the path `key`, or those tensors whose names begin with it."""
    inner, rest = raw, key.split('.')
    while rest and isinstance(inner, Mapping) and isinstance(inner.get(rest[0]), Mapping):
        inner, rest = inner[rest[0]], rest[1:]
    state: State = {}
    with contextlib.suppress(CheckpointError if rest else ()):  # several sets: a prefix of names is ambiguous
        state = find_set(inner, where=f'{where}:{key}')
    prefix = '.'.join([*rest, '']) if rest else ''
    chosen = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not chosen:
        known = [name for name in dict(_sets(raw)) if name] or sorted({name.partition('.')[0] for name in state})
        raise CheckpointError(
            f"nothing is called '{key}' in the file{did_you_mean(key, known)}",
            where=f'{where}:{key}',
            why=f'it holds {some(known, 12)}',
            fix='write PATH:KEY with one of these, or PATH alone',
        )
    return chosen


def _several(sets: Mapping[str, Any], where: str) -> CheckpointError:
    counts = [f'{name} ({len(tensors_of(value))} tensors)' for name, value in sets.items()]
    return CheckpointError(
        f'the file holds {len(sets)} sets of weights, and nothing says which one is meant',
        where=where,
        why=f'there are {some(counts, 12)}',
        fix=f'name one behind the path: {where}:{next(iter(sets))}',
    )
