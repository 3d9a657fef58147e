"""Seeds of all random generators: for a run, and for each of its steps."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random, so that the same config makes the same weights."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch, numpy and random for one training step.

    Random numbers of a step depend on nothing but (seed, step, rank): a resumed run needs no stored random state, and
    validations and loader workers may use what they like.
    """
    words = np.random.SeedSequence([seed, step, rank]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(words[1])
    random.seed(int(words[2]))
