"""The memory of a worst-case training step, and how to reduce it where it does not fit."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from vitdense.commands.worst_case import worst_batch
from vitdense.device import finish_work
from vitdense.errors import ResourceError
from vitdense.protocols import Recomputing
from vitdense.reporting.console import console
from vitdense.train.runner import DenseRunner
from vitdense.types import Batch

USED = 0.9  # share of the memory that a run may use; fragments and other processes need some too
GIB = 2**30


class Measured(NamedTuple):
    """Memory of a training step."""

    batch_size: int
    fixed: int  # bytes in use between steps: weights, the optimizer's state, the program itself
    peak: int  # most bytes in use during the step
    seconds: float = 0.0

    def at(self, batch_size: int) -> int:
        """Return the peak that a step of `batch_size` would have: all but `fixed` grows with the images."""
        return self.fixed + -(-(self.peak - self.fixed) * batch_size // self.batch_size)


class Proposal(NamedTuple):
    """How to train with the same number of images in each step of the optimizer."""

    batch_size: int
    accumulation: int
    checkpointing: bool
    peak: int  # bytes, expected


def propose(
    available: int,
    plain: Measured | None,
    recomputed: Measured | None = None,
    *,
    batch_size: int,
    accumulation: int = 1,
    least: int = 1,
) -> list[Proposal]:
    """Return ways to train that fit into `available` bytes, the fastest first; none: none fits.

    `plain` and `recomputed` are steps without and with activation checkpointing (None: not possible, or it ran out of
    memory). Batches have `least` images or more and divide `batch_size` times `accumulation`. Without checkpointing
    the batch is smaller and no activation is computed twice; with it, it is offered only where it is larger.
    """
    total, proposals = batch_size * accumulation, []
    for measured, checkpointing in ((plain, False), (recomputed, True)):
        sizes = [size for size in range(batch_size, least - 1, -1) if total % size == 0]
        fits = [size for size in sizes if measured is not None and measured.at(size) <= USED * available]
        if fits and (not proposals or fits[0] > proposals[0].batch_size):
            proposals.append(Proposal(fits[0], total // fits[0], checkpointing, measured.at(fits[0])))
    return proposals


def check_fit(runner: DenseRunner, wrapper: Any) -> Measured:
    """Train one worst-case step of the runner, print how much time and memory it took, and return that.

    A small batch goes first. Where it shows that the whole one does not fit, that is not tried. All branches run, as
    they do where a batch, or those of several processes together, has labels for all. Raises ResourceError with what to
    change where the batch does not fit, and when the device runs out of memory.
    """
    loader, model = runner.train_dataloader, runner.network_model
    batch_size, device = loader.batch_size, runner.device
    least = min(2 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1, batch_size)
    batch = worst_batch(loader.dataset.dataset, batch_size)
    size, boxes = tuple(batch.imgs.shape[-2:]), batch.targets[0].boxes
    objects = '' if boxes is None else f', {len(boxes)} objects each'
    step = _Step(runner, wrapper, batch)
    plain, available = step.measure(least), memory_available(device)
    ahead = None if plain is None else plain.at(batch_size)
    if ahead is not None and ahead <= USED * available:
        whole = plain if batch_size == least else step.measure(batch_size)
        if whole is not None:
            console().print(
                f'worst case: {batch_size} images of {size[1]} x {size[0]}{objects}: {whole.seconds:.2f} s, '
                f'at most {whole.peak / GIB:.2f} GiB of {available / GIB:.1f} GiB on {device}'
            )
            return whole
    recomputed = step.recomputed(least)
    raise does_not_fit(
        propose(
            available,
            plain,
            recomputed,
            batch_size=batch_size,
            accumulation=wrapper._accumulative_counts,
            least=least,
        ),
        where=f'{batch_size} images of {size[1]} x {size[0]}{objects}, on {device}',
        needed=ahead,
        available=available,
        option=_checkpointing_option(runner),
        num_processes=runner.world_size,
    )


def does_not_fit(
    proposals: list[Proposal],
    *,
    where: str,
    needed: int | None,
    available: int,
    option: str,
    num_processes: int = 1,
) -> ResourceError:
    """Return the error with the options that fit; proposals are of one process, options of all."""
    lines = []
    for proposal in proposals:
        more = f' {option}' if proposal.checkpointing else ''
        lines.append(
            f'--cfg-options train_dataloader.batch_size={proposal.batch_size * num_processes} '
            f'optim_wrapper.accumulative_counts={proposal.accumulation}{more}   (about {proposal.peak / GIB:.1f} GiB)'
        )
    too_large = 'not even the smallest batch fits: take smaller images or a smaller backbone, freeze it, or use LoRA'
    amount = 'more than there is' if needed is None else f'about {needed / GIB:.1f} GiB'
    return ResourceError(
        'the worst-case step does not fit into memory',
        where=where,
        why=f'it needs {amount}; {available / GIB:.1f} GiB are available, of which a run may use {USED:.0%}',
        fix='\nor: '.join(lines) or too_large,
    )


def _checkpointing_option(runner: DenseRunner) -> str:
    backbone = (runner.config.model.get('network') or {}).get('backbone') or {}
    return f'{"" if "checkpointing" in backbone else "+"}model.network.backbone.checkpointing=True'


class _Step:
    """Training steps on the first images of a batch."""

    def __init__(self, runner: DenseRunner, wrapper: Any, batch: Batch) -> None:
        self.runner, self.wrapper, self.batch = runner, wrapper, batch
        self.warm = False

    def measure(self, number: int) -> Measured | None:
        """Return what a step on `number` images takes; None: the device ran out of memory."""
        device = self.runner.device
        try:
            if not self.warm:
                self._train(number)  # makes the state of the optimizer, and whatever libraries make once
                self.warm = True
            self.wrapper.zero_grad()
            reset_peak(device)
            fixed = memory_now(device)
            start = time.perf_counter()
            self._train(number)
            return Measured(number, fixed, max(peak_bytes(device), fixed), time.perf_counter() - start)
        except torch.OutOfMemoryError:
            self.wrapper.zero_grad()
            return None

    def recomputed(self, number: int) -> Measured | None:
        """Return what it takes with activation checkpointing; None: it ran out, or it cannot recompute anything."""
        able = [module for module in self.runner.network_model.modules() if isinstance(module, Recomputing)]
        able = [module for module in able if module.checkpointing is False]
        for module in able:
            module.checkpointing = True
        try:
            return self.measure(number) if able else None
        finally:
            for module in able:
                module.checkpointing = False

    def _train(self, number: int) -> None:
        batch = Batch(self.batch.imgs[:number], self.batch.targets[:number], self.batch.metas[:number])
        self.wrapper.initialize_count_status(self.runner.model, 0, 1)  # a step of the optimizer after this one batch
        self.runner.model.train()
        self.runner.network_model.skip_unlabelled = False
        try:
            self.runner.model.train_step(batch, self.wrapper)
        finally:
            self.runner.network_model.skip_unlabelled = True
        finish_work(self.runner.device)


def memory_now(device: torch.device) -> int:
    """Return the bytes in use: of the process, or of its tensors on a GPU."""
    if device.type == 'cuda':
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def reset_peak(device: torch.device) -> None:
    """Release freed memory that the allocator caches, and count the peak from here on, where the system can.

    Kept memory counts as in use: a step that takes it again would seem to need none.
    """
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries than glibc have no such function
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


def peak_bytes(device: torch.device) -> int:
    """Return the largest number of bytes in use since `reset_peak`; elsewhere than on Linux, since the beginning.

    On a GPU it is what torch had reserved, fragments included.
    """
    if device.type == 'cuda':
        return torch.cuda.max_memory_reserved(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/self/status').read_text().splitlines()
        return int(next(line for line in lines if line.startswith('VmHWM:')).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def memory_available(device: torch.device) -> int:
    """Return the bytes that this process may use, including those in use."""
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    left = [psutil.virtual_memory().available, _granted(Path('/sys/fs/cgroup'))]
    return memory_now(device) + min(bound for bound in left if bound is not None)


def _granted(root: Path) -> int | None:
    """Return the bytes that the control group (version 2, else 1) has left, or None without a limit."""
    files = (('memory.max', 'memory.current'), ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes'))
    for limit, used in files:
        with contextlib.suppress(OSError, ValueError):  # 'max' is no number
            return max(int((root / limit).read_text()) - int((root / used).read_text()), 0)
    return None
