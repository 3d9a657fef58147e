"""Work that is submitted ahead of its use, and items in groups."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from vitdense.inference.inputs import Input


def ahead(items: Iterable[Input], submit: Callable[[Input], Future], count: int) -> Iterator[tuple[Input, Future]]:
    """Yield `(item, future)` in order, with `count` items submitted ahead of the one that is waited for."""
    pending: deque[tuple[Input, Future]] = deque()
    for item in items:
        pending.append((item, submit(item)))
        if len(pending) > count:
            yield pending.popleft()
    yield from pending


def groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group
