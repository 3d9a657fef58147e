"""Fixtures for all tests. Real pictures and weights lie in `shared/` beside the checkout; else those tests skip."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch import multiprocessing as torch_processes

torch.set_num_threads(1)  # the suite is as fast as with more, and stays so on a machine that does other work as well
os.environ.setdefault('OMP_NUM_THREADS', '1')


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


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """What a run does to the log of the process ends with its test: caplog hears a silenced logger in another way."""
    logger = logging.getLogger('vitdense')
    before = logger.propagate, logger.level, list(logger.handlers)
    yield
    logger.propagate, logger.level, logger.handlers[:] = before


def _rank(rank: int, size: int, folder: Path, function: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=size)
    torch.save(function(rank), folder / f'answer_{rank}.pt')
    if distributed.is_initialized():  # the function may have left the group itself
        distributed.barrier()
        distributed.destroy_process_group()


@pytest.fixture
def run_ranks(tmp_path, monkeypatch) -> Callable[..., list]:
    """Run `function(rank)` in every process of a group; the answers in order. What fails in a rank fails the test."""
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')

    def run(function: Callable[[int], Any], size: int = 2, seconds: float = 360) -> list:
        folder = tmp_path / 'ranks'
        folder.mkdir()
        group = torch_processes.spawn(_rank, (size, folder, function), nprocs=size, join=False)
        deadline = time.monotonic() + seconds
        while not group.join(timeout=1):
            if time.monotonic() > deadline:
                for process in group.processes:
                    process.kill()
                raise TimeoutError(f'{size} ranks did not end in {seconds} s')
        return [torch.load(folder / f'answer_{rank}.pt', weights_only=False) for rank in range(size)]

    return run
