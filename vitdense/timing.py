"""Time measurement of the parts of a forward pass; thread-safe."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from vitdense.protocols import BackboneNetwork, HeadsNetwork

NETWORK = 'network.'  # key for the time of the whole network; no part can have this name

_running = threading.local()  # `watch`: the stopwatch of this thread's forward pass


class Stopwatch:
    """Sum of `seconds` by name. `now` returns the time, on a GPU after synchronisation."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time inside to `name`."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - start

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure `timed(name)` blocks of this thread inside."""
        before = getattr(_running, 'watch', None)
        _running.watch = self
        try:
            yield
        finally:
            _running.watch = before

    @contextmanager
    def watching(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
        """Measure the calls of `modules` by this thread inside, under their names."""
        handles = [handle for name, module in modules for handle in self._hooks(name, module)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str, module: nn.Module) -> tuple[Any, Any]:
        starts: list[float] = []
        thread = threading.get_ident()  # hooks belong to the module, so passes of other threads call them, too

        def begin(*_: Any) -> None:
            if threading.get_ident() == thread:
                starts.append(self.now())

        def end(*_: Any) -> None:
            if threading.get_ident() == thread:
                self.seconds[name] += self.now() - starts.pop()

        return module.register_forward_pre_hook(begin), module.register_forward_hook(end)


def timed(name: str) -> AbstractContextManager[None]:
    """Add the time inside to `name` of the stopwatch that is `running` in this thread, if any."""
    watch = getattr(_running, 'watch', None)
    return nullcontext() if watch is None else watch(name)


def parts_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the (name, module) pairs to measure: the backbone, and the adapter and head of each branch.

    Empty for a compiled network, whose graph hooks would split.
    """
    if is_compiled(network):
        return []
    backbone = [('backbone', network.backbone)] if isinstance(network, BackboneNetwork) else []
    parts = (network.adapters, network.heads) if isinstance(network, HeadsNetwork) else ()
    return backbone + [item for part in parts for item in part.items()]


def is_compiled(network: nn.Module) -> bool:
    """Return whether torch.compile makes the network or one of its modules run, in place or as a wrapper."""
    return any(
        '_orig_mod' in module._modules or module._compiled_call_impl is not None  # without importing the compiler
        for module in network.modules()
    )
