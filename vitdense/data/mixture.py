"""Several data sets as one: each image is labelled for some tasks only, and each data set gets its share of draws."""

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

from vitdense.data.class_names import join_metainfo
from vitdense.data.sampling import InfiniteSampler, SampleIndex
from vitdense.errors import ConfigError, did_you_mean
from vitdense.registry import build, takes
from vitdense.types import Sample

Batches = Literal['mixed', 'homogeneous']
FINENESS = 100  # turns of the rarest data set in a round, where weights are not whole numbers


class Mixture(Dataset):
    """Train on several data sets at once.

    `datasets` maps names to data sets or their recipes, each with transforms of its own. A recipe that does not say its
    `name` gets the one it has here, by which tasks choose their rows (`datasets=`); its `root` starts at `root` (a
    config gives its `data_root`). The indices of the data sets follow each other.

    `weights` are the shares of the draws by name: of weights 4, 2 and 1, every round of seven draws holds four of the
    first, two of the second and one of the third, in an order of its own. Numbers that are not whole are shares, kept
    to one percent of the smallest. By default they are the sizes, so that a round is an epoch of all images. A data
    set of weight 0 is not drawn, but its classes count: the same model, trained for fewer tasks.
    `batches` says what is drawn: 'mixed' draws images, and a batch holds several data sets, padded to the largest
    image; 'homogeneous' draws whole batches of one data set, each process its own.

    `metainfo` joins those of the data sets, field by field. A data set whose files number classes by themselves counts
    as the first one with the same field does. Raises ConfigError for names that `weights` does not know, weights that
    are negative or all 0, and fields on whose classes two data sets do not agree.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset | dict],
        *,
        weights: Mapping[str, float] | None = None,
        batches: Batches = 'mixed',
        root: str | Path | None = None,
    ) -> None:
        if not datasets or batches not in get_args(Batches):
            raise ConfigError(
                f'a mixture of {len(datasets)} data sets in {batches!r} batches',
                where='Mixture(datasets=, batches=)',
                why=f'it needs at least one data set, and batches are {" or ".join(get_args(Batches))}',
                fix="write datasets=dict(coco=dict(...), ade20k=dict(...)), batches='mixed'",
            )
        self.datasets = {name: _named(part, name, root) for name, part in datasets.items()}
        lengths = [len(dataset) for dataset in self.datasets.values()]
        self.ends = list(accumulate(lengths))
        self.turns = _turns(dict(zip(self.datasets, lengths, strict=True)), weights)
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
        """Return the data sets that are drawn, each with the range of its indices."""
        bounds = zip([0, *self.ends], self.ends, self.datasets.values(), self.turns, strict=False)
        return [(range(start, stop), dataset) for start, stop, dataset, turns in bounds if turns]

    def set_classes(self, classes: Mapping[str, Sequence[str]]) -> None:
        """Let the data sets count their classes as `classes` does, by name, where they can; else as the first does."""
        joined: dict[str, Any] = {'classes': {}}
        for name, dataset in self.datasets.items():
            if hasattr(dataset, 'set_classes'):
                dataset.set_classes({**joined['classes'], **classes})
            joined = join_metainfo(joined, dataset.metainfo, where=f'Mixture(datasets={name})')
        self.metainfo = joined

    def check(self, *, training: bool = False) -> None:
        """Look at a sample of the labels of every data set. Raises DataError for what cannot be.

        For `training`, the label maps of all data sets that are drawn hold two classes at least.
        """
        for dataset in self.datasets.values():
            check_labels(dataset, training=False)
        parts = [dataset for _, dataset in self.parts() if getattr(dataset, 'seen', None) is not None]
        if training and parts and len({index for part in parts for index in part.seen.present}) < 2:
            for part in parts:
                part.check(training=True)

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start: int = 0) -> Sampler:
        """Return the endless sampler of this mixture, for batches of `batch_size` on each of `world_size` processes."""
        return MixtureSampler(
            np.diff([0, *self.ends]).tolist(),
            self.turns,
            unit=batch_size if self.batches == 'homogeneous' else 1,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start=start,
        )


class MixtureSampler(Sampler):
    """Draw for ever from data sets of `lengths` whose indices follow each other; data set k has `turns[k]` of a round.

    A turn is `unit` draws in a row from one data set. Each round is shuffled as a function of (seed, round), and the
    ranks take turns. Within each data set the draws are those of an `InfiniteSampler` over it alone, whatever else is
    mixed in. `start` is the number of draws this rank has made already; a start within a turn begins with the next.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        turns: Sequence[int],
        *,
        unit: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        self.streams = [InfiniteSampler(length, seed=seed, rank=rank, world_size=world_size) for length in lengths]
        self.offsets = [0, *accumulate(lengths)]
        self.turns, self.unit, self.seed = list(turns), unit, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # by data set: its epoch at hand, and the order of that

    def __iter__(self) -> Iterator[SampleIndex]:
        turn = -(-self.start // self.unit) * self.world_size + self.rank
        size, number = sum(self.turns), -1
        while True:
            if turn // size != number:
                number = turn // size
                order, before = self._round(number)
            which = int(order[turn % size])
            first = (number * self.turns[which] + int(before[turn % size])) * self.unit
            for position in range(first, first + self.unit):
                yield self._draw(which, position)
            turn += self.world_size

    def _round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return whose turn it is in a round, and how many turns of the round each of them had before."""
        order = np.repeat(np.arange(len(self.turns)), self.turns)
        order = np.random.default_rng([self.seed, number, len(order)]).permutation(order)
        before = np.empty_like(order)
        for which, turns in enumerate(self.turns):
            before[order == which] = np.arange(turns)
        return order, before

    def _draw(self, which: int, position: int) -> SampleIndex:
        """Return draw `position` of the endless row of data set `which`."""
        stream = self.streams[which]
        epoch = position // stream.length
        if self._orders.get(which, (-1,))[0] != epoch:
            self._orders[which] = epoch, stream.order(epoch)
        return SampleIndex(epoch, self.offsets[which] + int(self._orders[which][1][position % stream.length]))


def rooted(recipe: Any, root: str | Path | None) -> Any:
    """Return the recipe of a data set that finds its files: its own `root` starts at `root`, where it takes one."""
    if not isinstance(recipe, dict) or root is None or not takes(recipe, 'root'):
        return recipe
    return {**recipe, 'root': str(Path(root) / recipe.get('root', ''))}


def check_labels(dataset: Any, *, training: bool) -> None:
    """Let a data set look at a sample of its labels, where it can. Raises DataError for what cannot be."""
    if hasattr(dataset, 'check'):
        knows = 'training' in inspect.signature(dataset.check).parameters  # a data set of the user's may not
        dataset.check(**({'training': training} if knows else {}))


def _named(part: Any, name: str, root: str | Path | None) -> Any:
    recipe = rooted(part, root)
    return build(recipe, **({'name': name} if isinstance(recipe, dict) and takes(recipe, 'name') else {}))


def _turns(lengths: Mapping[str, int], weights: Mapping[str, float] | None) -> list[int]:
    """Return how many turns of a round each data set has. Raises ConfigError for weights that do not fit."""
    given = dict(lengths if weights is None else weights)
    odd = [name for name in given if name not in lengths] or [name for name in lengths if name not in given]
    wrong = [name for name, weight in given.items() if not (isinstance(weight, (int, float)) and 0 <= weight < 1e9)]
    if odd or wrong or not any(given.values()):
        name = [*odd, *wrong, *lengths][0]
        meant = '' if name in lengths else did_you_mean(name, lengths)
        raise ConfigError(
            f"the weight of '{name}' is {given.get(name, 'missing')}{meant}",
            where='Mixture(weights=)',
            why=f'every data set has a weight of 0 or more, one of them above 0; they are {", ".join(lengths)}',
            fix=f'write weights=dict({", ".join(f"{name}=1" for name in lengths)})',
        )
    values = [given[name] for name in lengths]
    if not all(float(value).is_integer() for value in values):
        values = [round(value / min(filter(None, values)) * FINENESS) for value in values]
    whole = [int(value) for value in values]
    return [value // reduce(gcd, whole) for value in whole]
