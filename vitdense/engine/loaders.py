"""Data loaders: seeded draws, workers that survive signals, and errors that keep their kind across processes."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader, Dataset

from vitdense.data.collate import collate
from vitdense.data.mixture import rooted
from vitdense.data.seeding import EvaluationSampler, InfiniteSampler, SeededDataset, worker_init
from vitdense.engine.data_checks import max_bad_fraction
from vitdense.engine.resources import cpu_count
from vitdense.errors import ResourceError, VitDenseError
from vitdense.registry import build, takes


def build_dataset(recipe: Mapping[str, Any], *, root: str | None = None) -> Dataset:
    """Return the data set of a loader's `dataset` recipe; its `root` starts at the config's `data_root`.

    It is called as the folder `root`, unless the recipe has a `name`.
    """
    recipe = rooted(recipe, root)
    named = root is not None and takes(recipe, 'root') and takes(recipe, 'name')
    return build(recipe, **({'name': Path(recipe['root']).absolute().name} if named else {}))


def adopt_classes(dataset: Dataset, metainfo: Mapping[str, Any]) -> None:
    """Let a data set whose files have numbers of their own count its classes as `metainfo` does, by name."""
    if hasattr(dataset, 'adopt'):
        dataset.adopt(metainfo['classes'])


def train_loader(
    section: Mapping[str, Any], dataset: Dataset, *, seed: int, rank: int, world_size: int, start: int, pin_memory: bool
) -> DataLoader:
    """Return the endless loader of training batches; `start` is the number of samples this rank has drawn before."""
    place = dict(seed=seed, rank=rank, world_size=world_size, start=start)
    if hasattr(dataset, 'sampler'):  # a mixture: who is drawn depends on more than a length
        sampler = dataset.sampler(batch_size=section.get('batch_size', 1), **place)
    else:
        sampler = InfiniteSampler(len(dataset), **place)
    # single unreadable pictures are replaced, and counted
    seeded = SeededDataset(dataset, seed, max_bad_fraction=max_bad_fraction(section))
    return _loader(section, seeded, sampler, pin_memory=pin_memory)


def evaluation_loader(
    section: Mapping[str, Any], dataset: Dataset, *, seed: int, rank: int, world_size: int, pin_memory: bool
) -> DataLoader:
    """Return the loader that gives every picture exactly once over all ranks."""
    sampler = EvaluationSampler(len(dataset), rank=rank, world_size=world_size)
    return _loader(section, SeededDataset(dataset, seed, tolerate=False), sampler, pin_memory=pin_memory)


def num_workers(section: Mapping[str, Any]) -> int:
    """Return how many workers a loader gets: what the config says, at most one for each processor."""
    return min(section.get('num_workers', 2), cpu_count())


def _loader(section: Mapping[str, Any], dataset: SeededDataset, sampler: Any, *, pin_memory: bool) -> DataLoader:
    workers = num_workers(section)
    return TypedErrorLoader(
        CarryErrors(dataset),
        batch_size=section.get('batch_size', 1),
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_or_error,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker if workers else None,
    )


class CarryErrors(Dataset):
    """A data set that returns a VitDenseError as an item: raised in a worker, it would arrive as text only."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

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


_open: WeakSet[TypedErrorLoader] = WeakSet()


def close_loaders() -> None:
    """End the workers of all loaders. They ignore SIGTERM, so nobody else can."""
    atexit.unregister(close_loaders)
    for loader in list(_open):
        batches, loader._iterator = loader._iterator, None
        if hasattr(batches, '_shutdown_workers'):
            batches._shutdown_workers()
            for worker in batches._workers:
                if worker.is_alive():
                    worker.kill()


class TypedErrorLoader(DataLoader):
    """A DataLoader that raises the errors that its workers met, and says what a killed worker usually means."""

    def __iter__(self) -> Iterator[Any]:
        _open.add(self)
        atexit.register(close_loaders)  # before multiprocessing's own, which would wait for the workers
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if 'worker' not in str(error) or not any(word in str(error) for word in ('killed', 'exited')):
                    raise
                raise ResourceError(
                    'a loader worker died',
                    where=f'{type(self.dataset.dataset.dataset).__name__} with {self.num_workers} workers',
                    why=f'{error}; usually memory, or shared memory (/dev/shm) in a container',
                    fix='try --workers 0, a smaller batch, or a container with more shared memory',
                ) from error
            if isinstance(batch, VitDenseError):
                raise batch
            yield batch


def _start_worker(worker: int) -> None:
    """Leave signals to the main process, which saves and then ends the workers; compute on one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker_init(worker)
