"""The processes of a distributed run: how they find each other, and what happens when one of them ends.

torchrun sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and so do the operators of Kubernetes. Tasks
that Slurm starts with srun have variables of Slurm instead, from which these are derived.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from mmengine.dist import get_dist_info

from vitdense.device import choose_device
from vitdense.errors import ConfigError, ResourceError
from vitdense.storage.atomic import make_folder

LOST = ('closed by peer', 'reset by peer', 'refused', 'timed out', 'timeout', 'remote process', 'socket', 'pair')


def read_slurm(environment: MutableMapping[str, str]) -> None:
    """Set the variables of torchrun from those of Slurm, in a task of srun that has none of torchrun.

    The first host of the step is the meeting point, and its port follows from the number of the job, unless MASTER_ADDR
    and MASTER_PORT are set. Raises ConfigError where the list of hosts cannot be read.
    """
    size = int(environment.get('SLURM_STEP_NUM_TASKS', 1))  # absent outside of srun, as in the batch script itself
    if 'RANK' in environment or size < 2:
        return
    environment['RANK'], environment['WORLD_SIZE'] = environment['SLURM_PROCID'], str(size)
    environment.setdefault('LOCAL_RANK', environment.get('SLURM_LOCALID', '0'))
    hosts = environment.get('SLURM_STEP_NODELIST') or environment.get('SLURM_JOB_NODELIST', '')
    environment.setdefault('MASTER_ADDR', first_host(hosts))
    environment.setdefault('MASTER_PORT', str(20_000 + int(environment.get('SLURM_JOB_ID', 0)) % 20_000))


def first_host(hosts: str) -> str:
    """Return the first host of a list of Slurm: 'gpu[03-05,9],login' begins with gpu03. Raises ConfigError."""
    match = re.match(r'([^,\[\]\s]+)(?:\[(\d+)[^\]]*\])?([^,\[\]\s]*)', hosts)
    if match is None:
        raise ConfigError(
            f'the hosts of the Slurm step cannot be read from {hosts!r}',
            where='SLURM_STEP_NODELIST',
            why='the processes need the address of one host to find each other',
            fix='export MASTER_ADDR (and MASTER_PORT) before srun',
        )
    return f'{match[1]}{match[2] or ""}{match[3]}'


def join_processes(device: str | None) -> torch.device:
    """Join the other processes of this run, if it has any; return the device of this one. Raises ConfigError."""
    read_slurm(os.environ)
    chosen = choose_device(device)
    start_processes(chosen)
    return chosen


def start_processes(device: torch.device) -> tuple[int, int]:
    """Join the process group that the environment describes, if it does; return (rank, world size)."""
    if 'RANK' in os.environ and int(os.environ.get('WORLD_SIZE', 1)) > 1 and not torch.distributed.is_initialized():
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
        torch.distributed.init_process_group(backend, **_own_keys_after_restart())
    return get_dist_info()


def _own_keys_after_restart() -> dict[str, Any]:
    """Return the store of the process group where torchrun has started all processes of one machine again.

    Its server outlives them, and a process could read the address of one that has ended. On several machines the
    numbers of restarts may differ, so the store stays as it is there.
    """
    environment = os.environ
    restarts = int(environment.get('TORCHELASTIC_RESTART_COUNT', 0))
    if not restarts or environment.get('LOCAL_WORLD_SIZE') != environment['WORLD_SIZE']:
        return {}
    store, rank, size = next(torch.distributed.rendezvous('env://'))
    return dict(store=torch.distributed.PrefixStore(f'restart {restarts}', store), rank=rank, world_size=size)


def restarted_since() -> float | None:
    """Return when torchrun began, in seconds of the epoch, if it has started this process again after a failure
    (`--max-restarts`); else None.
    """
    again = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
    return psutil.Process(os.getppid()).create_time() if again else None


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
    """Make the work directory and join the other processes of the run. Raises ResourceError, DiskError."""
    work_dir, chosen = Path(work_dir), join_processes(device)
    make_folder(work_dir)
    return Process(work_dir, chosen, *start_processes(chosen))


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Turn the error of a collective operation whose partner has ended into ResourceError; all others pass.

    The process that failed has shown its own error before its connections closed.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not torch.distributed.is_initialized() or not _is_lost(error):
            raise
        raise ResourceError(
            'another process of the run has ended',
            where=f'rank {torch.distributed.get_rank()} of {torch.distributed.get_world_size()}',
            why=re.sub(r'^\[[^\]]*\] *', '', str(error).strip()).partition('. ')[0].splitlines()[0][:300],
            fix="look for that process's own error above, or in the summary of torchrun; then --resume",
        ) from error


def _is_lost(error: Exception) -> bool:
    kind = isinstance(error, torch.distributed.DistError) or 'gloo' in str(error).lower()
    return kind and any(word in str(error).lower() for word in LOST)


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
