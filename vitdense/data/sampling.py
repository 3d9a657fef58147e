"""Samplers and seeding: the same seed gives the same batches, for any number of workers and after any resume.

A sampler yields `SampleIndex(epoch, index)`; `SeededDataset` seeds every random generator from (seed, epoch, index)
while it reads that sample, so a sample depends neither on the worker nor on the samples before it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from vitdense.arguments import MAX_BAD_FRACTION, check, within
from vitdense.data.dataset_protocols import MixedDataset
from vitdense.data.files.images import UnreadableImage
from vitdense.data.transforms.random import in_epoch
from vitdense.errors import DataError
from vitdense.types import Sample

_MAX_RETRIES = 20
_logger = logging.getLogger('vitdense')


class SampleIndex(NamedTuple):
    """An index of the data set and the epoch in which it is read, as samplers yield them."""

    epoch: int
    index: int


class InfiniteSampler(Sampler):
    """Endless sampler: one permutation of the data set after the other, each a function of (seed, epoch).

    Samples are dealt out to the ranks in turn. `start` is the number of samples that this rank has had: a resumed run
    continues there. `shuffle=False` keeps the order of the data set.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        _check_length(length, rank, world_size)
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[SampleIndex]:
        position = self.start * self.world_size + self.rank
        epoch, order = -1, None
        while True:
            if position // self.length != epoch:
                epoch = position // self.length
                order = self.order(epoch)
            yield SampleIndex(epoch, int(order[position % self.length]))
            position += self.world_size

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of one epoch in their order."""
        if not self.shuffle:
            return np.arange(self.length)
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)


class EvaluationSampler(Sampler):
    """Every index exactly once over all ranks, in order, without padding: ranks may differ by one sample."""

    def __init__(self, length: int, *, rank: int = 0, world_size: int = 1) -> None:
        _check_length(length, rank, world_size)
        self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[SampleIndex]:
        return (SampleIndex(0, index) for index in self.indices)


class SeededDataset(Dataset):
    """Data set whose items are read with torch, numpy and random seeded from (seed, epoch, index).

    With `tolerate` (training) an unreadable image is logged once and replaced by a random one of the same data set of a
    mixture; 20 in a row, or more than `max_bad_fraction` of the data set (but one is always allowed), are a DataError.
    Wrong *labels* always raise. Without `tolerate` (evaluation) unreadable images raise, too. With `skip` they are
    logged and counted before that, for a loader that leaves them out.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int = 0,
        *,
        tolerate: bool = True,
        skip: bool = False,
        max_bad_fraction: float = MAX_BAD_FRACTION,
    ) -> None:
        within(max_bad_fraction, 0, 1, 'max_bad_fraction')
        self.dataset = dataset
        self.seed = seed
        self.tolerate = tolerate
        self.skip = skip
        self.max_bad_fraction = max_bad_fraction
        # shared by the workers, so that each file is logged once per run and the fraction counts all of them
        self._bad = torch.zeros(len(dataset) if tolerate or skip else 0, dtype=torch.bool).share_memory_()

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    @property
    def num_bad(self) -> int:
        """The number of unreadable images so far, over all workers."""
        return int(self._bad.sum())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: SampleIndex | int) -> Sample:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        start, stop = self.dataset.span(index) if isinstance(self.dataset, MixedDataset) else (0, len(self.dataset))
        for attempt in range(_MAX_RETRIES):
            numbers = self.seed, epoch, index - start, attempt  # the same in a mixture as alone
            try:
                with seeded(*numbers), in_epoch(epoch):
                    return self.dataset[index]
            except UnreadableImage as error:
                if not self.tolerate:
                    self._raise_unreadable(index, error)
                self._count_unreadable(index, error)
            index = start + int(np.random.default_rng(numbers).integers(stop - start))
        raise DataError(
            f'{_MAX_RETRIES} unreadable images in a row',
            where=f'{type(self.dataset).__name__}[{index}]',
            why='single bad images are replaced, but this looks like a broken data set or a lost disk',
            fix='see the warnings above for the files, repair or remove them',
        )

    def _raise_unreadable(self, index: int, error: UnreadableImage) -> NoReturn:
        if self.skip and not self._bad[index]:
            self._bad[index] = True
            _logger.warning('unreadable image is not evaluated: %s (%s)', error.where, error.message)
        fix = f'{error.fix}; or leave such images out, counted beside the score: --skip-bad-eval'
        raise UnreadableImage(error.message, where=error.where, why=error.why, fix=fix) from error

    def _count_unreadable(self, index: int, error: UnreadableImage) -> None:
        if not self._bad[index]:
            self._bad[index] = True
            _logger.warning('unreadable image replaced by another: %s (%s)', error.where, error.message)
        if self.num_bad > max(1, self.max_bad_fraction * len(self)):
            raise DataError(
                f'{self.num_bad} of {len(self)} images are unreadable',
                where=error.where,
                why=f'more than {self.max_bad_fraction:.1%} are bad; the last one: {error.message}. {error.why}',
                fix='repair or remove the files named in the warnings, or allow more of them: '
                '--cfg-options +train_dataloader.max_bad_fraction=0.05',
            )


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch (CPU), numpy and random from `numbers`; their states are restored on leaving."""
    words = np.random.SeedSequence(numbers).generate_state(4)
    generator = torch.random.default_generator  # not torch.manual_seed, which would reset the accelerator's as well
    states = generator.get_state(), np.random.get_state(), random.getstate()
    generator.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])
    random.seed(int(words[3]))
    try:
        yield
    finally:
        generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def worker_init(worker_id: int) -> None:
    """Keep a DataLoader worker to one thread: more workers, not more threads, use more cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _check_length(length: int, rank: int, world_size: int) -> None:
    check(length > 0, 'sampler.length', length, 'the data set is empty', 'check the paths of the data set')
    why = f'ranks count from 0 to {world_size - 1}'
    check(0 <= rank < world_size, 'sampler.rank', rank, why, 'give the rank and world size of this process')
