"""Fixtures for all tests. Real pictures and weights lie in `shared/` beside the checkout; else those tests skip."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder `shared/data` beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip('no shared/data beside the checkout')
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)
