"""Start and leave the process group of a distributed run, and seed all random generators."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info

from vitdense.device import choose_device
from vitdense.storage.atomic import make_folder


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


def start_processes(device: torch.device) -> tuple[int, int]:
    """Join the processes that torchrun started, if it did; return (rank, world size)."""
    if 'RANK' in os.environ and int(os.environ.get('WORLD_SIZE', 1)) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return get_dist_info()


class Process(NamedTuple):
    """One process of a run."""

    work_dir: Path
    device: torch.device
    rank: int
    world_size: int

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of loaders."""
        return dict(rank=self.rank, world_size=self.world_size, pin_memory=self.device.type == 'cuda')


def this_process(work_dir: str | Path, device: str | None) -> Process:
    """Make the work directory and join the processes that torchrun started. Raises ResourceError, DiskError."""
    work_dir, chosen = Path(work_dir), choose_device(device)
    make_folder(work_dir)
    return Process(work_dir, chosen, *start_processes(chosen))


def leave_processes(runner: Any = None) -> None:
    """Destroy the process group, if there is one; the model of `runner` loses the wrapper of distributed training.

    The wrapper keeps the group alive, and with it threads that may still hold tensors of the last exchange. One that
    lets go of them while Python is ending aborts the whole process, after all its work was done.
    """
    if torch.distributed.is_initialized():
        if runner is not None:
            runner.model = runner.network_model
        gc.collect()
        torch.distributed.destroy_process_group()
