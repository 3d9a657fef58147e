"""Work that is submitted ahead of its use, items in groups, and the time spent waiting for items."""

from __future__ import annotations

import itertools
import time
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
    """Yield lists of at most `size` items."""
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group


def timed(items: Iterable[Any], on_wait: Callable[[float], None]) -> Iterator[Any]:
    """Yield items; `on_wait` is called with the seconds spent waiting for each."""
    items, end = iter(items), object()
    while True:
        start = time.perf_counter()
        item = next(items, end)
        on_wait(time.perf_counter() - start)
        if item is end:
            return
        yield item
