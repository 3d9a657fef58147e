"""Comparisons of the splits of a data set: images that several splits share, and classes that one lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vitdense.dataset_checks.near_duplicates import names, near_duplicates
from vitdense.dataset_checks.report import DataReport, Finding


def compare_splits(reports: Mapping[str, DataReport], root: Path) -> list[Finding]:
    """Return `shared` (near duplicates in several splits) and `missing` (classes without an object in a split).

    `reports` are by the name of the split; paths are shown below `root`.
    """
    return [*_shared(reports, root), *_missing(reports)] if len(reports) > 1 else []


def _shared(reports: Mapping[str, DataReport], root: Path) -> Iterator[Finding]:
    splits = {path: split for split, report in reports.items() for path in report.fingerprints}
    fingerprints = {path: row for report in reports.values() for path, row in report.fingerprints.items()}
    for group in near_duplicates(fingerprints):
        involved = list(dict.fromkeys(splits[path] for path in group))
        if len(involved) > 1:
            yield Finding('shared', ' and '.join(involved), names(group, root))


def _missing(reports: Mapping[str, DataReport]) -> Iterator[Finding]:
    classes = dict.fromkeys(name for report in reports.values() for name, count in report.objects.items() if count)
    for split, report in reports.items():
        for name in classes:
            if report.objects and not report.objects.get(name):
                yield Finding('missing', split, f'no {name}')
