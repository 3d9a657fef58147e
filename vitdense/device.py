"""Device, thread and precision selection."""

from __future__ import annotations

import os
import resource
import sys
import time
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from vitdense.errors import ConfigError


def cpu_count() -> int:
    """Return the number of processors this process may use: its affinity, and the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    quota = _cgroup_quota(Path('/sys/fs/cgroup'))
    return max(1, min(allowed, int(quota)) if quota else allowed)


def _cgroup_quota(root: Path) -> float | None:
    """Return the processors that the control group (version 2, else 1) grants, or None without a limit."""
    try:
        quota, period = (root / 'cpu.max').read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / 'cpu/cpu.cfs_quota_us').read_text().strip()
            period = (root / 'cpu/cpu.cfs_period_us').read_text().strip()
        except OSError:
            return None
    if quota in ('max', '-1') or int(period) <= 0:
        return None
    return max(1.0, int(quota) / int(period))


def finish_work(device: torch.device) -> None:
    """Wait until a GPU has done the work that was given to it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def shared_memory_free() -> int | None:
    """Return the free bytes of /dev/shm, through which workers send their batches; None where there is none."""
    try:
        state = os.statvfs('/dev/shm')
    except (OSError, AttributeError):
        return None
    return state.f_bavail * state.f_frsize


def torch_threads(num_workers: int, *, processes: int = 1) -> int:
    """Return the number of torch threads beside `num_workers` loader workers, in each of `processes`.

    The environment variable OMP_NUM_THREADS overrides it.
    """
    chosen = os.environ.get('OMP_NUM_THREADS', '')
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    return max(1, cpu_count() // (processes * (num_workers + 1)))


def peak_memory(device: torch.device) -> str:
    """Return the largest amount of memory used so far, in words."""
    if device.type == 'cuda':
        return f'{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on {torch.cuda.get_device_name(device)}'
    unit = 1 if sys.platform == 'darwin' else 1024
    return f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB of main memory'


def read_device(name: str | torch.device | None) -> torch.device:
    """Return the device of this name (None: the first GPU, else the CPU). Raises ConfigError when it is not there."""
    number = torch.cuda.device_count()
    try:
        device = torch.device(name or ('cuda' if number else 'cpu'))
    except RuntimeError as error:
        raise _no_device(name, str(error).partition(' at start')[0]) from None
    if device.type == 'cuda' and (device.index or 0) >= number:
        raise _no_device(name, f'torch has {number} CUDA devices')
    return device


def _no_device(name: str | torch.device | None, why: str) -> ConfigError:
    return ConfigError(
        f"there is no device '{name}'", where='--device', why=why, fix='use --device cpu, or leave the option out'
    )


class Precision(NamedTuple):
    """Number format of the forward and backward pass."""

    name: Literal['bf16', 'fp16', 'off']
    dtype: torch.dtype | None  # of autocast; None is float32
    scaled: bool  # whether gradients need a scaler (float16)
    reason: str  # one line for the log


def choose_precision(amp: str, device: torch.device) -> Precision:
    """Return the precision for `amp` (auto, bf16, fp16, off) on `device`. Raises ConfigError for fp16 off CUDA."""
    if amp == 'off':
        return Precision('off', None, False, 'float32')
    if amp == 'bf16':
        return Precision('bf16', torch.bfloat16, False, 'bfloat16 (as requested)')
    if amp == 'fp16':
        if device.type != 'cuda':
            raise ConfigError(
                f'float16 cannot train on {device.type}',
                where='amp / --amp fp16',
                why='processors without float16 arithmetic emulate it, slowly and with overflows',
                fix='use --amp bf16 or --amp off',
            )
        return Precision('fp16', torch.float16, True, 'float16 with a loss scale (as requested)')
    if device.type == 'cuda':
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(
                'bf16', torch.bfloat16, False, f'bfloat16 ({torch.cuda.get_device_name(device)} computes it)'
            )
        return Precision('off', None, False, f'float32 ({torch.cuda.get_device_name(device)} has no bfloat16)')
    speedup = bfloat16_speedup(device.type)
    if speedup >= 1.2:
        return Precision('bf16', torch.bfloat16, False, f'bfloat16 ({speedup:.1f} times as fast as float32 in a probe)')
    return Precision('off', None, False, f'float32 (bfloat16 is {speedup:.1f} times as fast in a probe: too little)')


@cache
def bfloat16_speedup(kind: str) -> float:
    """Return the speedup of training a ViT's MLP and a convolution under bfloat16 autocast over float32.

    Both are timed in turns and the fastest turns compared, so that other programs do not decide.
    """
    random = torch.Generator().manual_seed(0)
    mlp = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)).to(kind)
    conv = nn.Conv2d(96, 96, 3, padding=1).to(kind)
    tokens = torch.rand(512, 384, generator=random).to(kind)

    def seconds(dtype: torch.dtype | None) -> float:
        start = time.perf_counter()
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            output = conv(mlp(tokens).view(2, 96, 32, 32))
        output.float().mean().backward()
        return time.perf_counter() - start

    with torch.enable_grad():
        turns = [(seconds(None), seconds(torch.bfloat16)) for _ in range(5)]
    plain, halved = (min(times) for times in zip(*turns[1:], strict=True))  # the first turn is a warm-up
    return plain / halved


def choose_device(name: str | None) -> torch.device:
    """Return the device of this process: `name`, else the GPU of its rank, else the CPU. Raises ConfigError."""
    rank = int(os.environ.get('LOCAL_RANK', 0))
    device = read_device(name)
    if device.type == 'cuda':
        visible = max(torch.cuda.device_count(), 1)  # a launcher may show each process its own GPU alone
        device = torch.device('cuda', rank % visible if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is an out-of-memory error of the GPU, of torch on the CPU, or of Python."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or 'DefaultCPUAllocator' in str(error)
