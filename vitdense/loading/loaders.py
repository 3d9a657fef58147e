"""Data loaders: seeded draws, workers that survive signals, and errors that keep their kind across processes."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader, Dataset

from vitdense.arguments import MAX_BAD_FRACTION
from vitdense.data.collate import collate
from vitdense.data.dataset_protocols import MixedDataset
from vitdense.data.files.images import UnreadableImage
from vitdense.data.sampling import EvaluationSampler, InfiniteSampler, SeededDataset
from vitdense.device import cpu_count
from vitdense.errors import VitDenseError
from vitdense.loading.workers import (
    PackedBatch,
    check_workers,
    explained,
    pack,
    start_worker,
    started_workers,
    stop,
    workers_that_fit,
)


def train_loader(
    section: Mapping[str, Any], dataset: Dataset, *, seed: int, rank: int, world_size: int, start: int, pin_memory: bool
) -> DataLoader:
    """Return the endless loader of training batches; `start` is the number of samples this rank has read before."""
    stream = dict(seed=seed, rank=rank, world_size=world_size, start=start)
    if isinstance(dataset, MixedDataset):
        sampler = dataset.sampler(batch_size=section.get('batch_size', 1), **stream)
    else:
        sampler = InfiniteSampler(len(dataset), **stream)
    # single unreadable images are replaced, and counted
    seeded = SeededDataset(dataset, seed, max_bad_fraction=max_bad_fraction(section))
    return _loader(section, seeded, sampler, pin_memory=pin_memory, share=0.6)


def evaluation_loader(
    section: Mapping[str, Any],
    dataset: Dataset,
    *,
    seed: int,
    rank: int,
    world_size: int,
    pin_memory: bool,
    skip_bad: bool = False,
) -> DataLoader:
    """Return the loader that gives every image exactly once over all ranks.

    An image that cannot be decoded is an error; with `skip_bad` it is left out and counted (`dataset.num_bad`), and
    instead of a batch without any other image comes None.
    """
    sampler = EvaluationSampler(len(dataset), rank=rank, world_size=world_size)
    seeded = SeededDataset(dataset, seed, tolerate=False, skip=skip_bad)
    return _loader(section, seeded, sampler, pin_memory=pin_memory, share=0.4, skip_bad=skip_bad)


def max_bad_fraction(section: Mapping[str, Any]) -> float:
    """Return the share of unreadable images that a training section allows."""
    return section.get('max_bad_fraction', MAX_BAD_FRACTION)


def num_workers(section: Mapping[str, Any]) -> int:
    """Return how many workers a loader gets: that of the config, at most one for each processor."""
    return min(section.get('num_workers', 2), cpu_count())


def _loader(
    section: Mapping[str, Any],
    dataset: SeededDataset,
    sampler: Any,
    *,
    pin_memory: bool,
    share: float,
    skip_bad: bool = False,
) -> DataLoader:
    size = section.get('batch_size', 1)
    workers = workers_that_fit(num_workers(section), size, lambda: dataset[next(iter(sampler))], share=share)
    return TypedErrorLoader(
        CarryErrors(dataset),
        batch_size=size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=partial(pack, collate_readable if skip_bad else collate_or_error),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker if workers else None,
        # workers share the memory of this process; from Python 3.14 on the default would copy the data set into each
        multiprocessing_context='fork' if workers and sys.platform == 'linux' else None,
    )


class CarryErrors(Dataset):
    """A data set that returns a VitDenseError as an item: raised in a worker, it would arrive as text only."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    @property
    def num_bad(self) -> int:
        """Number of unreadable images so far, of the workers of this process."""
        return self.dataset.num_bad

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Any) -> Any:
        try:
            return self.dataset[draw]
        except VitDenseError as error:
            return error


def collate_or_error(samples: list[Any]) -> Any:
    """Return the batch of `samples`, or the first error among them."""
    errors = [sample for sample in samples if isinstance(sample, VitDenseError)]
    return errors[0] if errors else collate(samples)


def collate_readable(samples: list[Any]) -> Any:
    """Return the batch of what could be decoded, None where nothing could, or the first other error."""
    readable = [sample for sample in samples if not isinstance(sample, UnreadableImage)]
    return collate_or_error(readable) if readable else None


_END = object()
_open: WeakSet[TypedErrorLoader] = WeakSet()


def close_loaders() -> None:
    """End the workers of all loaders. They ignore SIGTERM, so no other program ends them."""
    atexit.unregister(close_loaders)
    for loader in list(_open):
        stop(loader._current)
        loader._iterator = loader._batches = None


class TypedErrorLoader(DataLoader):
    """A DataLoader that raises the errors of its workers as they were, and explains the death of a worker."""

    _batches: Any = None  # the iterator at hand

    def __iter__(self) -> Iterator[Any]:
        _open.add(self)
        atexit.register(close_loaders)  # before multiprocessing's own, which would wait for the workers
        if self._iterator is not None:  # workers are kept from one validation to the next
            check_workers(self._workers(), self._where)
        with self._explained(), started_workers():
            batches = self._batches = super().__iter__()
        while True:
            check_workers(self._workers(), self._where)
            with self._explained():
                batch = next(batches, _END)
                batch = batch.open() if isinstance(batch, PackedBatch) else batch
            if batch is _END:
                return
            if isinstance(batch, VitDenseError):
                raise batch
            yield batch

    def _explained(self) -> Any:
        return explained(self._workers, self._where)

    def _workers(self) -> list[Any]:
        """The worker processes; none where the main process loads."""
        return getattr(self._current, '_workers', [])

    @property
    def _current(self) -> Any:
        return self._batches if self._iterator is None else self._iterator

    @property
    def _where(self) -> str:
        return f'{type(self.dataset.dataset.dataset).__name__} with {self.num_workers} workers'
