"""Reports of errors in data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdense.errors import DataError

TITLES = {  # of warnings
    'similar': 'groups of images that are nearly the same',
    'shared': 'groups of images that are nearly the same, in several splits',
    'missing': 'classes without an object in a split',
    'twice': 'objects that are labelled twice',
    'unusual': 'boxes far from the usual sizes of their class',
    'rare': 'classes with few objects',
}


class Finding(NamedTuple):
    """An error in a data set."""

    kind: str
    where: str  # an id or a file
    reason: str
    cause: str = ''  # shared by findings that one change corrects; '' where each has its own


class DataReport(NamedTuple):
    """Summary, findings and classes of a data set."""

    summary: list[tuple[str, str]]
    findings: list[Finding]
    header: tuple[str, ...]
    classes: list[tuple[str, ...]]  # one row for each class, under `header`
    counts: dict[str, int]  # findings by kind; not all of a kind need be listed
    hints: Sequence[str] = ()  # options that may correct many findings at once
    warnings: Sequence[Finding] = ()  # what may be meant as it is
    objects: Mapping[str, int] = {}  # of each class: objects, images, or label maps in which it occurs
    fingerprints: Mapping[Path, np.ndarray] = {}  # of the images that could be read


OnProgress = Callable[[int, int], None]  # (done, total)


def for_each(
    function: Callable[..., Any], jobs: Sequence[tuple], threads: int, on_progress: OnProgress | None
) -> Iterator[Any]:
    """Yield `function(*job)` for every job, in order; decoders release the GIL."""
    with ThreadPoolExecutor(threads) as pool:
        for done, result in enumerate(pool.map(lambda job: function(*job), jobs), 1):
            if on_progress is not None:
                on_progress(done, len(jobs))
            yield result


def unreadable(where: str, error: DataError, more: str = '') -> Finding:
    """Return the finding of an image that cannot be read."""
    return Finding('image', where, f'{error.message}: {error.why}{"; " if more else ""}{more}'.replace('\n', ' '))
