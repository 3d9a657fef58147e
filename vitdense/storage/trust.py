"""Whether pickles may be unpickled that can run code: only where the user of a tool says so, by --trust-checkpoint."""

from __future__ import annotations

_trusted = False


def trust_checkpoints(trusted: bool) -> None:
    """Let weight files of this process be read that run code when they are read, or no longer."""
    global _trusted
    _trusted = trusted


def are_checkpoints_trusted() -> bool:
    return _trusted
