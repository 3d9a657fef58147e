"""Random numbers for transforms, from torch's global generator, which `SeededDataset` seeds for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar('T')


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
