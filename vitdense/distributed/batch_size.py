"""How the processes of a run share its batches: the config states the total."""

from __future__ import annotations

from typing import NamedTuple

from vitdense.arguments import check


class Batches(NamedTuple):
    """The batches of a training run. A batch is what one step of the schedule takes, over all processes."""

    total: int  # images of a batch: `train_dataloader.batch_size` of the config
    accumulated: int  # batches whose gradients make one update
    num_processes: int = 1

    @property
    def share(self) -> int:
        """Images of a batch on each process."""
        return self.total // self.num_processes

    @property
    def effective(self) -> int:
        """Images of one update of the weights."""
        return self.total * self.accumulated

    def __str__(self) -> str:
        each = f', {self.share} on each of {self.num_processes} processes' if self.num_processes > 1 else ''
        sums = f', {self.accumulated} of them summed: {self.effective} an update' if self.accumulated > 1 else ''
        return f'batches of {self.total} images{each}{sums}'


def share_batches(total: int, accumulated: int, num_processes: int) -> Batches:
    """Return the batches of `total` images that `num_processes` processes share evenly.

    Raises ConfigError where they cannot, with the settings of the same effective batch that they can share.
    """
    batches = Batches(total, accumulated, num_processes)
    why = f'batch_size is the number of images over all {num_processes} processes, of which each takes an equal share'
    check(total % num_processes == 0, 'train_dataloader.batch_size', total, why, _advice(batches))
    return batches


def describe_rate(batches: Batches, lr: float | None) -> str:
    """Return the line that a run begins with: the batches, and the learning rate for each image of an update."""
    return f'{batches}' if lr is None else f'{batches}; lr {lr:g}, {lr / batches.effective:.3g} for each image'


def compare_batches(before: Batches, now: Batches) -> tuple[str, bool]:
    """Return the line that compares the batches of a resumed run, and whether the size of an update changed."""
    if before.effective == now.effective:
        return f'{now}, an update of {now.effective} images as before ({before})', False
    return (
        f'an update was of {before.effective} images ({before}) and is of {now.effective} now ({now}); the learning '
        'rate stays as the config says',
        True,
    )


def _advice(batches: Batches) -> str:
    """Return how as many images of an update can be shared, or by how many processes."""
    total, count = batches.effective, batches.num_processes
    fewer = [number for number in range(batches.accumulated, 0, -1) if total % (number * count) == 0]
    divisors = [number for number in range(1, count) if batches.total % number == 0]
    advice = f'start {" or ".join(map(str, divisors[-2:]))} process{"" if divisors == [1] else "es"}'
    if fewer:
        return (
            f'{advice}; or train_dataloader.batch_size={total // fewer[0]} '
            f'optim_wrapper.accumulative_counts={fewer[0]}, the same {total} images an update\n'
            '(warmup_iters, and with max_iters all of the schedule, count batches: of larger ones there are fewer)'
        )
    return f'{advice}; or a batch_size that is a multiple of {count}, with the learning rate for it'
