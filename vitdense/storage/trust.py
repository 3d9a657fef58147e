"""Whether pickles that can run code may be unpickled: only with --trust-checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_trusted = False


def trust_checkpoints(trusted: bool) -> None:
    """Let weight files of this process be read that run code when they are read, or no longer."""
    global _trusted
    _trusted = trusted


def are_checkpoints_trusted() -> bool:
    return _trusted


@contextmanager
def trusting_checkpoints() -> Iterator[None]:
    """Trust weight files of this process for a while: those that it has just written itself."""
    before = _trusted
    trust_checkpoints(True)
    try:
        yield
    finally:
        trust_checkpoints(before)
