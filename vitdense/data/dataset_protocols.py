"""Protocols of data sets: what they must and may offer. Those of models and metrics are in `vitdense.protocols`.

`data.datasets.build_dataset` checks `Dataset`; the others are optional abilities, which code tests with `isinstance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vitdense.types import Sample


class Dataset(Protocol):
    """Samples by index."""

    metainfo: dict[str, Any]  # 'classes': {field: names}

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class ImageFileDataset(Protocol):
    """A data set of image files."""

    name: str

    def image_files(self) -> tuple[Path, list[str]]: ...  # a folder, and paths below it


@runtime_checkable
class FilePathsDataset(Protocol):
    """A data set that lists all files that it reads, labels too."""

    def paths(self) -> Iterator[Path]: ...


@runtime_checkable
class ListedDataset(Protocol):
    """A data set whose list of images may name files that are missing."""

    def image_files(self) -> tuple[Path, list[str]]: ...

    def missing(self) -> list[str]: ...


@runtime_checkable
class AnnotatedDataset(Protocol):
    """A data set with one annotation file."""

    path: Path


@runtime_checkable
class CountingDataset(Protocol):
    """A data set that counts the labels that its `check` has seen."""

    label_statistics: Any  # None before the check


@runtime_checkable
class ObjectDataset(Protocol):
    """A data set of objects: how many each image has."""

    name: str

    def object_counts(self, *, of_one_class: bool = False) -> Any: ...


@runtime_checkable
class SummaryDataset(Protocol):
    """A data set with a line about its numbers of images, objects and classes."""

    name: str

    def summary(self) -> str: ...


@runtime_checkable
class ExtentDataset(Protocol):
    """A data set with known largest image sizes and number of objects."""

    def extent(self) -> tuple[list[tuple[int, int]], int]: ...


@runtime_checkable
class TransformedDataset(Protocol):
    """A data set that applies a `Pipeline` of transforms."""

    pipeline: Any


class SampleSource(Protocol):
    """A data set whose samples can be read before the transforms, for steps that combine several."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample: ...


@runtime_checkable
class MixingTransform(Protocol):
    """A step of a `Pipeline` that combines a sample with others, each read by a call of `other`."""

    def mix(self, sample: Sample, other: Callable[[], Sample]) -> Sample: ...


@runtime_checkable
class ValueRangeDataset(Protocol):
    """A data set whose images may have more than 8 bits."""

    value_range: tuple[float, float] | None


@runtime_checkable
class CheckableDataset(Protocol):
    """A data set that checks a sample of its labels; `training=` where it takes it. Raises DataError."""

    def check(self) -> Any: ...


@runtime_checkable
class RelabelledDataset(Protocol):
    """A data set that can order its classes by name."""

    def set_classes(self, classes: Any) -> None: ...


@runtime_checkable
class MixedDataset(Protocol):
    """Several data sets in one, with a sampler of their own."""

    def parts(self) -> list[tuple[range, Any]]: ...

    def span(self, index: int) -> tuple[int, int]: ...

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start: int = 0) -> Any: ...
