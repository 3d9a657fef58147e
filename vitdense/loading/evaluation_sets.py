"""Several validation or test sets in one loop, each with metrics of its own.

In a config a loader section with `dataset` is one set; else it is `{name: section}`, and its evaluators are
`{name: [metric, ...]}` with the same names. One set is `{'': section}` here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.evaluator import Evaluator
from torch.utils.data import DataLoader, Dataset

from vitdense.config.load import named_sections
from vitdense.data.datasets import JoinedDatasets
from vitdense.loading.loaders import evaluation_loader
from vitdense.protocols import Metric
from vitdense.registry import build, check_part
from vitdense.types import Batch


class LoaderSet:
    """Loaders by name, one after the other, for a loop; `current` is that of the last batch."""

    def __init__(self, loaders: Mapping[str, DataLoader]) -> None:
        self.loaders = dict(loaders)
        self.current = next(iter(self.loaders))

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[Batch]:
        for name, loader in self.loaders.items():
            self.current = name
            yield from loader

    @property
    def dataset(self) -> JoinedDatasets:
        """The images of all loaders."""
        return JoinedDatasets([loader.dataset for loader in self.loaders.values()])


class SetEvaluator(Evaluator):
    """Show each batch to the metrics of the set that it came from."""

    def __init__(self, loaders: LoaderSet, metrics: Mapping[str, Sequence[Any]]) -> None:
        super().__init__([metric for each in metrics.values() for metric in each])
        self.loaders = loaders
        self.by_set = {name: Evaluator(each) for name, each in metrics.items()}
        for name, evaluator in self.by_set.items():
            evaluator.dataset_meta = loaders.loaders[name].dataset.metainfo

    @property
    def dataset_meta(self) -> dict[str, Any]:
        """The joined metainfo of all sets; each metric has its own."""
        return self.loaders.dataset.metainfo

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: Mapping[str, Any]) -> None:
        """Called by the loop; the metrics of every set have been set already."""

    def process(self, data_samples: Sequence[Any], data_batch: Batch | None = None) -> None:
        self.by_set[self.loaders.current].process(data_samples, data_batch)

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the scores of all sets; `size` is ignored: each set has its own."""
        scores: dict[str, float] = {}
        for name, evaluator in self.by_set.items():
            scores |= evaluator.evaluate(len(self.loaders.loaders[name].dataset))
        return scores


def build_evaluators(recipes: Any) -> dict[str, list[Any]]:
    """Return the metrics of a config's `val_evaluator` or `test_evaluator`, by set.

    Scores are `HEAD/METRIC`; where metrics of several sets score one head, they are `SET/HEAD/METRIC`.
    """
    named = recipes if isinstance(recipes, Mapping) else {'': recipes or ()}
    metrics = {
        name: [check_part(build(recipe), Metric, 'evaluator') for recipe in each] for name, each in named.items()
    }
    sets_by_prefix: dict[str, set[str]] = {}
    for name, each in metrics.items():
        for metric in each:
            sets_by_prefix.setdefault(metric.prefix, set()).add(name)
    for name, each in metrics.items():
        for metric in each:
            metric.prefix = f'{name}/{metric.prefix}' if len(sets_by_prefix[metric.prefix]) > 1 else metric.prefix
    return metrics


def all_metrics(evaluators: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return the metrics of all sets in one list."""
    return [metric for each in evaluators.values() for metric in each]


def evaluation_parts(
    section: Mapping[str, Any],
    datasets: Mapping[str, Dataset],
    evaluators: Mapping[str, Sequence[Any]],
    **loading: Any,
) -> tuple[DataLoader | LoaderSet, Sequence[Any] | SetEvaluator]:
    """Return the loader and the evaluator of a loop over the data sets of a config's `section`.

    `loading` are the arguments of `evaluation_loader`: the seed, where this process computes, and whether unreadable
    images are left out.
    """
    loaders = {
        name: evaluation_loader(each, datasets[name], **loading) for name, each in named_sections(section).items()
    }
    if set(loaders) == {''}:
        return loaders[''], evaluators['']
    together = LoaderSet(loaders)
    return together, SetEvaluator(together, evaluators)


def set_name(loader: Any) -> str:
    """Return the name of the set whose batch a loop over `loader` came to last; '' where there is one set."""
    return loader.current if isinstance(loader, LoaderSet) else ''


def first_dataset(loader: Any) -> Dataset:
    """Return the data set behind a loader of this project, or behind the first of several."""
    return next(iter(datasets_of(loader).values()))


def datasets_of(loader: Any) -> dict[str, Dataset]:
    """Return the data set behind each loader of this project by the name of its set; '' where there is one."""
    loaders = loader.loaders if isinstance(loader, LoaderSet) else {'': loader}
    return {name: each.dataset.dataset.dataset for name, each in loaders.items()}
