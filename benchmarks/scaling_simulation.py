"""What loading, logging and the questions between ranks add to a step of many ranks: the training loop without a model.

    python benchmarks/scaling_simulation.py --ranks 64 --seconds 2 --steps 8

Starts as many processes as ranks on this machine (gloo), forked after the imports. Each runs vitdense's training loop
with its loader, sampler, seeds, gradient exchange (DDP), guard, log rows and requests to stop; in place of the model a
step sleeps for `--seconds`, as the processor of a machine with an accelerator waits for it. The same ranks then run
steps of that length with the exchange of gradients alone. The difference of the median step times is what the loop
adds; the exit code is 1 where that is more than 5 %.

The ranks share the cores of one machine, where real ones have some each: the number is an upper bound for the loop,
and says nothing of the network (`benchmarks/communication.py` computes that part).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    """The times at which steps end, as a hook of the loop."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, name: str, **_: Any) -> None:
        if name == 'before_train_iter':
            self.times.append(time.perf_counter())

    @property
    def median(self) -> float:
        """The median seconds from one step to the next, without the first two, in which loaders and groups start."""
        steps = [after - before for before, after in zip(self.times[2:], self.times[3:], strict=False)]
        return statistics.median(steps)


def loop_seconds(rank: int, ranks: int, seconds: float, steps: int, folder: Path) -> float:
    """Return the median step time of the training loop."""
    model, device, clock = Sleeper(seconds), torch.device('cpu'), StepTimes()
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
    return clock.median


def bare_seconds(seconds: float, steps: int) -> float:
    """Return the median step time of forward pass, backward pass with the exchange of gradients, and update."""
    model, clock = DistributedDataParallel(Sleeper(seconds)), StepTimes()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    imgs = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    for _ in range(steps):
        clock('before_train_iter')
        model(imgs)['sem.loss_ce'].backward()
        optimizer.step()
        optimizer.zero_grad()
    return clock.median


def simulate(rank: int, ranks: int, seconds: float, steps: int, folder: Path) -> None:
    """Run one rank; the first one writes both medians to `folder / 'medians'`."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=ranks)
    with quiet():
        bare = bare_seconds(seconds, steps)
        loop = loop_seconds(rank, ranks, seconds, steps, folder)
    if rank == 0:
        (folder / 'medians').write_text(f'{bare} {loop}')
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ranks', type=int, default=64)
    parser.add_argument('--seconds', type=float, default=2.0, help='length of a step of the model')
    parser.add_argument('--steps', type=int, default=8)
    args = parser.parse_args()
    os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    with tempfile.TemporaryDirectory() as folder:
        arguments = (args.ranks, args.seconds, args.steps, Path(folder))
        torch_processes.start_processes(simulate, arguments, nprocs=args.ranks, start_method='fork')
        bare, loop = map(float, (Path(folder) / 'medians').read_text().split())
    added = loop / bare - 1
    print(f'{args.ranks} ranks: a bare step {bare:.3f} s, one of the training loop {loop:.3f} s: {added:+.1%}')
    return int(added > LIMIT)


if __name__ == '__main__':
    raise SystemExit(main())
