"""Build data sets from their config sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vitdense.data.class_names import join_metainfo
from vitdense.data.mixture import rooted
from vitdense.registry import build, takes


def build_dataset(recipe: Mapping[str, Any], *, root: str | None = None) -> Dataset:
    """Return the data set of a loader's `dataset` recipe; its `root` starts at the config's `data_root`.

    It is called as the folder `root`, unless the recipe has a `name`.
    """
    recipe = rooted(recipe, root)
    named = root is not None and takes(recipe, 'root') and takes(recipe, 'name')
    return build(recipe, **({'name': Path(recipe['root']).absolute().name} if named else {}))


def share_classes(dataset: Dataset, metainfo: Mapping[str, Any]) -> None:
    """Let a data set whose files have numbers of their own count its classes as `metainfo` does, by name."""
    if hasattr(dataset, 'set_classes'):
        dataset.set_classes(metainfo['classes'])


class JoinedDatasets:
    """The number of images of several data sets, and their `metainfo` joined."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = list(datasets)

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    @property
    def num_bad(self) -> int:
        """How many images of all sets were found to be unreadable so far, by the workers of this process."""
        return sum(dataset.num_bad for dataset in self.datasets)

    @property
    def metainfo(self) -> dict[str, Any]:
        """What all of them say; of a key that is no dict, what the first says."""
        found = [dataset.metainfo for dataset in self.datasets]
        return reduce(lambda first, second: join_metainfo(first, second, where='evaluation'), found)
