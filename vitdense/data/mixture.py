"""Several data sets as one, sampled by weights; each image is labelled for some of the tasks."""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from math import gcd
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Dataset, Sampler

from vitdense.arguments import check, check_choice
from vitdense.data import dataset_protocols as protocols
from vitdense.data.class_names import join_metainfo
from vitdense.data.dataset_protocols import CheckableDataset, CountingDataset, RelabelledDataset
from vitdense.data.sampling import InfiniteSampler, SampleIndex
from vitdense.errors import did_you_mean
from vitdense.registry import build, check_part, takes
from vitdense.types import Sample

Batches = Literal['mixed', 'homogeneous']
RESOLUTION = 100  # blocks of the rarest data set in a round, where weights are not whole numbers


class Mixture(Dataset):
    """Concatenation of data sets for joint training.

    `datasets` maps names to data sets or their recipes, each with its own transforms. The name here is the default
    `name` of a recipe, by which tasks select samples (`datasets=`); its `root` is relative to `root` (`data_root` of
    the config). Indices are those of a concatenation.

    `weights` are sampling weights by name: with 4, 2 and 1, every round of seven samples holds four of the first, two
    of the second and one of the third, in random order. Fractional weights are rounded to one percent of the smallest.
    By default they are the sizes, so that a round is an epoch of all images. A data set of weight 0 is not sampled, but
    its classes are part of the model.
    `batches` is 'mixed' (a batch holds images of several data sets, padded to the largest image) or 'homogeneous'
    (each batch of a process is of one data set).

    `metainfo` is joined field by field; annotation files with different ids are numbered as the first data set of the
    same field. Raises ConfigError for unknown names in `weights`, weights that are negative or all 0, and data sets
    with different classes for one field.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset | dict],
        *,
        weights: Mapping[str, float] | None = None,
        batches: Batches = 'mixed',
        root: str | Path | None = None,
    ) -> None:
        fix = 'write datasets=dict(coco=dict(...), ade20k=dict(...))'
        check(bool(datasets), 'Mixture.datasets', datasets, 'a mixture needs at least one data set', fix)
        check_choice('Mixture.batches', batches, get_args(Batches))
        self.datasets = {name: _named(part, name, root) for name, part in datasets.items()}
        lengths = [len(dataset) for dataset in self.datasets.values()]
        self.ends = list(accumulate(lengths))
        self.blocks = _blocks(dict(zip(self.datasets, lengths, strict=True)), weights)
        self.batches = batches
        self.metainfo: dict[str, Any] = {}
        self.set_classes({})

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Sample:
        row = bisect_right(self.ends, index)
        return list(self.datasets.values())[row][index - self.span(index)[0]]

    def span(self, index: int) -> tuple[int, int]:
        """Return the range [start, stop) of indices that belong to the same data set as `index`."""
        row = bisect_right(self.ends, index)
        return (self.ends[row - 1] if row else 0), self.ends[row]

    def parts(self) -> list[tuple[range, Any]]:
        """Return the data sets of nonzero weight, each with the range of its indices."""
        bounds = zip([0, *self.ends], self.ends, self.datasets.values(), self.blocks, strict=False)
        return [(range(start, stop), dataset) for start, stop, dataset, blocks in bounds if blocks]

    def set_classes(self, classes: Mapping[str, Sequence[str]]) -> None:
        """Number the classes of all data sets as in `classes`, by name, else as in the first data set of a field."""
        joined: dict[str, Any] = {'classes': {}}
        for name, dataset in self.datasets.items():
            if isinstance(dataset, RelabelledDataset):
                dataset.set_classes({**joined['classes'], **classes})
            joined = join_metainfo(joined, dataset.metainfo, where=f'Mixture(datasets={name})')
        self.metainfo = joined

    def check(self, *, training: bool = False) -> None:
        """Check a sample of the labels of every data set. Raises DataError.

        For `training`, the label maps of all data sets of nonzero weight must hold two classes at least.
        """
        for dataset in self.datasets.values():
            check_labels(dataset, training=False)
        counting = [dataset for _, dataset in self.parts() if isinstance(dataset, CountingDataset)]
        parts = [dataset for dataset in counting if dataset.label_statistics is not None]
        if training and parts and len({index for part in parts for index in part.label_statistics.present}) < 2:
            for part in parts:
                part.check(training=True)

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start: int = 0) -> Sampler:
        """Return the endless sampler of this mixture, for batches of `batch_size` on each of `world_size` processes."""
        return MixtureSampler(
            np.diff([0, *self.ends]).tolist(),
            self.blocks,
            unit=batch_size if self.batches == 'homogeneous' else 1,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start=start,
        )


class MixtureSampler(Sampler):
    """Endless sampler over concatenated data sets of `lengths`; data set k has `blocks[k]` of the blocks of a round.

    A block is `unit` samples of one data set in a row. Each round is shuffled by (seed, round) and its blocks are dealt
    out to the ranks. Within a data set, the samples are those of an `InfiniteSampler` over it alone. `start` is the
    number of samples that this rank has had; inside a block, sampling continues with the next block.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        blocks: Sequence[int],
        *,
        unit: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        self.streams = [InfiniteSampler(length, seed=seed, rank=rank, world_size=world_size) for length in lengths]
        self.offsets = [0, *accumulate(lengths)]
        self.blocks, self.unit, self.seed = list(blocks), unit, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # by data set: the current epoch and its order

    def __iter__(self) -> Iterator[SampleIndex]:
        block = -(-self.start // self.unit) * self.world_size + self.rank
        size, number = sum(self.blocks), -1
        while True:
            if block // size != number:
                number = block // size
                order, before = self._round(number)
            which = int(order[block % size])
            first = (number * self.blocks[which] + int(before[block % size])) * self.unit
            for position in range(first, first + self.unit):
                yield self._sample(which, position)
            block += self.world_size

    def _round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the data set of each block of a round, and its number among the blocks of that data set."""
        order = np.repeat(np.arange(len(self.blocks)), self.blocks)
        order = np.random.default_rng([self.seed, number, len(order)]).permutation(order)
        before = np.empty_like(order)
        for which, count in enumerate(self.blocks):
            before[order == which] = np.arange(count)
        return order, before

    def _sample(self, which: int, position: int) -> SampleIndex:
        """Return the sample at `position` of the endless sequence of data set `which`."""
        stream = self.streams[which]
        epoch = position // stream.length
        if self._orders.get(which, (-1,))[0] != epoch:
            self._orders[which] = epoch, stream.order(epoch)
        return SampleIndex(epoch, self.offsets[which] + int(self._orders[which][1][position % stream.length]))


def with_root(recipe: Any, root: str | Path | None) -> Any:
    """Return the recipe of a data set with its `root` relative to `root`, if it has that argument."""
    if not isinstance(recipe, dict) or root is None or not takes(recipe, 'root'):
        return recipe
    return {**recipe, 'root': str(Path(root) / recipe.get('root', ''))}


def check_labels(dataset: Any, *, training: bool) -> None:
    """Call `check` of a data set that has one. Raises DataError."""
    if isinstance(dataset, CheckableDataset):
        has_training = 'training' in inspect.signature(dataset.check).parameters  # optional in users' data sets
        dataset.check(**({'training': training} if has_training else {}))


def _named(part: Any, name: str, root: str | Path | None) -> Any:
    recipe = with_root(part, root)
    dataset = build(recipe, **({'name': name} if isinstance(recipe, dict) and takes(recipe, 'name') else {}))
    return check_part(dataset, protocols.Dataset, f'Mixture(datasets={name})')


def _blocks(lengths: Mapping[str, int], weights: Mapping[str, float] | None) -> list[int]:
    """Return the number of blocks of a round for each data set. Raises ConfigError for wrong weights."""
    weights = dict(lengths if weights is None else weights)
    odd = [name for name in weights if name not in lengths] or [name for name in lengths if name not in weights]
    wrong = [name for name, weight in weights.items() if not (isinstance(weight, (int, float)) and 0 <= weight < 1e9)]
    if odd or wrong or not any(weights.values()):
        name = [*odd, *wrong, *lengths][0]
        meant = '' if name in lengths else did_you_mean(name, lengths)
        why = f'every data set has a weight of 0 or more, one of them above 0; they are {", ".join(lengths)}{meant}'
        fix = f'write weights=dict({", ".join(f"{name}=1" for name in lengths)})'
        check(False, f'Mixture.weights.{name}', weights.get(name, 'missing'), why, fix)
    values = [weights[name] for name in lengths]
    if not all(float(value).is_integer() for value in values):
        values = [round(value / min(filter(None, values)) * RESOLUTION) for value in values]
    whole = [int(value) for value in values]
    return [value // reduce(gcd, whole) for value in whole]
