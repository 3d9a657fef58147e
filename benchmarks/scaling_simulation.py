"""The overhead of loading, logging and collectives in a step of many ranks: the training loop without a model.

    python benchmarks/scaling_simulation.py                        # a discrete model of 64 ranks
    python benchmarks/scaling_simulation.py --processes --seconds 2 --steps 8    # 64 processes on this machine

Both run vitdense's training loop with its loader, sampler, seeds, gradient exchange (DDP over gloo), guard, requests to
stop and a log row for every step, on a model of a few weights.

The discrete model measures the processor time that the loop adds to a step of one process, and computes the time of
`--ranks` of them: a step begins when the slowest rank has its batch and has done its part of the loop, with a measured
time chosen at random, and takes `--seconds`. Each rank has `--workers` that need `--load` seconds for a batch
(lognormal, deviation half of the mean) and are two batches ahead each. `--latency` is that of the exchange of requests.

With `--processes` as many processes as ranks are forked here, whose model sleeps for `--seconds` as a processor waits
for an accelerator. They share the cores of one machine, where real ranks have some each: that is an upper bound.

The result is the share that is added to a step with the exchange of gradients alone; the exit code is 1 above 5 %.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch import multiprocessing as torch_processes
from torch.nn.parallel import DistributedDataParallel

from vitdense.data.shapes import ShapesScenes
from vitdense.loading.loaders import close_loaders, train_loader
from vitdense.reporting.console import quiet
from vitdense.reporting.history import History
from vitdense.reporting.trackers import Trackers
from vitdense.train.saving import Saving
from vitdense.train.schedule import Schedule
from vitdense.train.step import Clipping, GuardedOptimWrapper
from vitdense.train.trainer import TrainingLoop
from vitdense.types import Batch

LIMIT = 0.05


class Sleeper(nn.Module):
    """A model of a few weights whose step takes `seconds` without a processor."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Linear(16, 16)

    def data_preprocessor(self, batch: Batch, training: bool) -> Batch:
        return batch

    def forward(self, imgs: Tensor, *others: Any, mode: str = 'loss') -> dict[str, Tensor]:
        time.sleep(self.seconds)
        return {'sem.loss_ce': self.weight(imgs.float().mean().expand(1, 16) / 255).square().mean()}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return losses['sem.loss_ce'], losses


class StepTimes:
    """The times at which steps end, as a hook of the loop; `clock` is that of the wall or of the process."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.times: list[float] = []

    def __call__(self, name: str, **_: Any) -> None:
        if name == 'before_train_iter':
            self.times.append(self.clock())

    @property
    def steps(self) -> list[float]:
        """The seconds from one step to the next, without the first two, in which loaders and groups start."""
        return [after - before for before, after in zip(self.times[2:], self.times[3:], strict=False)]


def loop_steps(rank: int, ranks: int, seconds: float, steps: int, folder: Path, clock: StepTimes) -> list[float]:
    """Return the step times of the training loop."""
    model, device = Sleeper(seconds), torch.device('cpu')
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([{'params': list(model.parameters()), 'base_lr': 1e-3}], lr=1e-3)
    wrapper = GuardedOptimWrapper(optimizer, model, clipping=Clipping(1.0))
    dataset = ShapesScenes(num_images=4 * ranks, size=64, split='train')
    section = dict(batch_size=2, num_workers=1)
    loader = train_loader(section, dataset, seed=0, rank=rank, world_size=ranks, start=0, pin_memory=False)
    runner = SimpleNamespace(
        model=wrapped, network_model=model, optim_wrapper=wrapper, rank=rank, world_size=ranks, device=device,
        call_hook=clock, val_loop=None, experiment_name='simulation', train_dataloader=loader,
    )  # fmt: skip
    loop = TrainingLoop(
        runner, loader, seed=0, schedule=Schedule(steps, steps), saving=Saving(folder, interval=10**6),
        history=History(folder, interval=1, best=None), trackers=Trackers((), folder, {}),
    )  # fmt: skip
    loop.save = lambda: None  # writing a checkpoint takes as long on one rank as on many
    wrapper.initialize_count_status(wrapped, 0, steps)
    loop.run()
    close_loaders()
    return clock.steps


def bare_steps(seconds: float, steps: int, clock: StepTimes) -> list[float]:
    """Return the step times of forward pass, backward pass with the exchange of gradients, and update."""
    model = DistributedDataParallel(Sleeper(seconds))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    imgs = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    for _ in range(steps):
        clock('before_train_iter')
        model(imgs)['sem.loss_ce'].backward()
        optimizer.step()
        optimizer.zero_grad()
    return clock.steps


def run_rank(rank: int, ranks: int, seconds: float, steps: int, folder: Path) -> None:
    """Run one of many processes; the first one writes both medians to `folder / 'medians'`."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=ranks)
    with quiet():
        bare = statistics.median(bare_steps(seconds, steps, StepTimes()))
        loop = statistics.median(loop_steps(rank, ranks, seconds, steps, folder, StepTimes()))
    if rank == 0:
        (folder / 'medians').write_text(f'{bare} {loop}')
    distributed.barrier()
    distributed.destroy_process_group()


def measured_cost(folder: Path, steps: int = 60) -> np.ndarray:
    """Return the processor seconds that the loop adds to a step of one process, one number for each step."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=0, world_size=1)
    with quiet():
        bare = statistics.median(bare_steps(0.0, steps, StepTimes(time.process_time)))
        loop = loop_steps(0, 1, 0.0, steps, folder, StepTimes(time.process_time))
    distributed.destroy_process_group()
    return np.maximum(np.array(loop) - bare, 0)


def modelled_step(cost: np.ndarray, args: argparse.Namespace, steps: int = 2000) -> float:
    """Return the mean step time of the discrete model (see the docstring of this file)."""
    random = np.random.default_rng(0)
    shape = np.sqrt(np.log(1.25))  # of a lognormal whose deviation is half of its mean
    load = random.lognormal(np.log(args.load) - shape**2 / 2, shape, (steps, args.ranks))
    own = random.choice(cost, (steps, args.ranks))
    ready = np.zeros((steps, args.ranks))  # when the batch of a step is there
    begun = np.zeros(steps)
    ahead = 2 * args.workers
    for step in range(steps):
        free = ready[step - args.workers] if step >= args.workers else 0.0  # its worker has the batch before
        space = begun[step - ahead] if step >= ahead else 0.0
        ready[step] = np.maximum(free, space) + load[step]
        after = begun[step - 1] + args.seconds if step else 0.0
        begun[step] = np.maximum(after + own[step], ready[step]).max() + args.latency
    return (begun[-1] - begun[steps // 10]) / (steps - 1 - steps // 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ranks', type=int, default=64)
    parser.add_argument('--seconds', type=float, default=0.5, help='length of a step of the model')
    parser.add_argument('--workers', type=int, default=4, help='of the loader of a rank')
    parser.add_argument('--load', type=float, default=0.4, help='seconds that a worker needs for a batch')
    parser.add_argument('--latency', type=float, default=1e-3, help='seconds of an exchange of a few bytes')
    parser.add_argument('--processes', action='store_true', help='start all ranks on this machine')
    parser.add_argument('--steps', type=int, default=8, help='with --processes')
    args = parser.parse_args()
    os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    with tempfile.TemporaryDirectory() as folder:
        if args.processes:
            arguments = (args.ranks, args.seconds, args.steps, Path(folder))
            torch_processes.start_processes(run_rank, arguments, nprocs=args.ranks, start_method='fork')
            bare, loop = map(float, (Path(folder) / 'medians').read_text().split())
        else:
            cost = measured_cost(Path(folder))
            usual, most = np.median(cost) * 1e3, cost.max() * 1e3
            print(f'the loop takes {usual:.1f} ms of a processor in a step, at most {most:.1f} ms')
            bare, loop = args.seconds, modelled_step(cost, args)
    added = loop / bare - 1
    print(f'{args.ranks} ranks: a bare step {bare:.3f} s, one of the training loop {loop:.3f} s: {added:+.1%}')
    return int(added > LIMIT)


if __name__ == '__main__':
    raise SystemExit(main())
