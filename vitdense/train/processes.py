"""Start and leave the process group of a distributed run, and seed all random generators."""

from __future__ import annotations

import gc
import os
import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and random, so that the same config makes the same weights."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def start_processes(device: torch.device) -> tuple[int, int]:
    """Join the processes that torchrun started, if it did; return (rank, world size)."""
    if 'RANK' in os.environ and int(os.environ.get('WORLD_SIZE', 1)) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return get_dist_info()


def leave_processes(runner: Any = None) -> None:
    """Part from the other processes, if there are any; the model of `runner` loses the wrapper of distributed training.

    The wrapper keeps the group alive, and with it threads that may still hold tensors of the last exchange. One that
    lets go of them while Python is ending aborts the whole process, after all its work was done.
    """
    if torch.distributed.is_initialized():
        if runner is not None:
            runner.model = runner.network_model
        gc.collect()
        torch.distributed.destroy_process_group()
