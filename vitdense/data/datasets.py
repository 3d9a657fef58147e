"""Build data sets from their config sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vitdense.data import dataset_protocols as protocols
from vitdense.data.class_names import join_metainfo
from vitdense.data.dataset_protocols import RelabelledDataset
from vitdense.data.mixture import with_root
from vitdense.registry import build, check_part, takes


def build_dataset(recipe: Mapping[str, Any], *, root: str | None = None) -> Dataset:
    """Build the data set of a loader's `dataset` recipe, with its `root` relative to `root` (`data_root`).

    Its default `name` is that of the folder `root`.
    """
    recipe = with_root(recipe, root)
    named = root is not None and takes(recipe, 'root') and takes(recipe, 'name')
    dataset = build(recipe, **({'name': Path(recipe['root']).absolute().name} if named else {}))
    return check_part(dataset, protocols.Dataset, 'dataset')


def share_classes(dataset: Dataset, metainfo: Mapping[str, Any]) -> None:
    """Number the classes of a data set as in `metainfo`, by name, if its annotation file has its own ids."""
    if isinstance(dataset, RelabelledDataset):
        dataset.set_classes(metainfo['classes'])


class JoinedDatasets:
    """Length and joined `metainfo` of several data sets."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = list(datasets)

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    @property
    def num_bad(self) -> int:
        """The number of unreadable images so far, over all data sets and the workers of this process."""
        return sum(dataset.num_bad for dataset in self.datasets)

    @property
    def metainfo(self) -> dict[str, Any]:
        """The joined `metainfo`; of a key that is no dict, that of the first data set."""
        infos = [dataset.metainfo for dataset in self.datasets]
        return reduce(lambda first, second: join_metainfo(first, second, where='evaluation'), infos)
