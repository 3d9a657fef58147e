"""Profiles of hypothesis: few examples, the same ones in every run; HYPOTHESIS_EXAMPLES=N for more of them."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get('HYPOTHESIS_EXAMPLES', 20))
few = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,  # nothing is written
    deadline=None,  # the machine may do other work
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.differing_executors],
)
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
