"""Random numbers for transforms, from torch's global generator, which `SeededDataset` seeds for each sample.

It also says in which pass over the data the sample is read, for augmentation that ends before training does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar('T')
_epoch: ContextVar[int] = ContextVar('epoch', default=0)


def uniform(low: float, high: float) -> float:
    """Return a number from [low, high)."""
    return low + (high - low) * torch.rand(()).item()


def integer(count: int) -> int:
    """Return a whole number from 0 ... count - 1."""
    return int(torch.randint(count, ()))


def bernoulli(probability: float) -> bool:
    """Return True with this probability."""
    return torch.rand(()).item() < probability


def choice(options: Sequence[T]) -> T:
    """Return one of the options."""
    return options[integer(len(options))]


def beta(alpha: float) -> float:
    """Return a number from Beta(alpha, alpha), in [0, 1]."""
    return torch.distributions.Beta(alpha, alpha).sample().item()


def current_epoch() -> int:
    """Return the number of passes over the data before the one in which the sample at hand is read."""
    return _epoch.get()


@contextmanager
def in_epoch(epoch: int) -> Iterator[None]:
    """Set what `current_epoch` returns inside."""
    token = _epoch.set(epoch)
    try:
        yield
    finally:
        _epoch.reset(token)
