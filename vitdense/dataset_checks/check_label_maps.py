"""Checks of folders of label maps and their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdense.data.files.images import LABEL_SUFFIXES, MAX_PIXELS, label_colors, read_label_map
from vitdense.data.files.opening import IMAGE_SUFFIXES
from vitdense.data.files.pairs import list_files, match
from vitdense.data.label_map import LabelTable
from vitdense.dataset_checks.image_statistics import ImageStatistics, range_findings
from vitdense.dataset_checks.report import DataReport, Finding, OnProgress, for_each
from vitdense.errors import DataError
from vitdense.types import IGNORE

FEW_NUMBERS = 8  # numbers of label maps that are no class: for more of them there is no hint


def check_labels(
    labels: Path,
    images: Path | None = None,
    *,
    classes: Any = None,
    ignore: int | Sequence[int] = IGNORE,
    reduce_zero_label: bool = False,
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
    threads: int = 2,
    on_progress: OnProgress | None = None,
) -> DataReport:
    """Check the label maps below `labels`, and the images of the same names below `images`.

    `classes`, `ignore` and `reduce_zero_label` are those of `SegmentationDataset`; without classes
    the numbers are only counted. Finds `label` (unreadable, or a number that is no class), `image` (missing or
    unreadable), `size` (not that of its image), `match` (names without a partner), `range` (as `check_coco`) and
    `no_objects` (fewer than two classes). Warns of `similar` images. Raises DataError where there is no such folder.
    """
    files = list_files(labels, LABEL_SUFFIXES, what='label maps')
    table = None if classes is None else LabelTable(classes, ignore=ignore, reduce_zero_label=reduce_zero_label)
    findings, partners = _partners(images, files, labels)
    statistics = ImageStatistics(max_pixels=max_pixels, value_range=value_range)
    jobs = [(labels / name, partners.get(name), table, statistics) for name in files.values()]
    pixels, image_counts, unknown_numbers = Counter[int](), Counter[int](), Counter[int]()
    for finding, numbers, unknown in for_each(_check_label_map, jobs, threads, on_progress):
        findings += finding
        pixels.update(numbers)
        image_counts.update(numbers.keys())
        unknown_numbers.update(unknown)
    summary = [('label maps', f'{len(files):,}')]
    summary += [('images', 'not checked' if images is None else f'{len(partners):,}'), *statistics.notes()]
    findings += range_findings(labels if images is None else images, statistics)
    class_names = [] if table is None else table.metainfo['classes']['semantic']
    present = [name for label, name in enumerate(class_names) if pixels[label]]
    if table is not None and not findings and len(present) < 2:
        reason = f'{present[0]!r} is the only class with pixels' if present else 'no pixel has a class'
        findings.append(Finding('no_objects', labels.name, f'{reason}: classification needs two classes'))
    rows = _label_rows(pixels, image_counts, table)
    counts = dict(Counter(finding.kind for finding in findings))
    header, hints = ('class', 'pixels', 'share', 'images'), _label_hints(unknown_numbers, ignore)
    objects = {name: image_counts[label] for label, name in enumerate(class_names)}
    more = dict(objects=objects, fingerprints=statistics.fingerprints)
    similar = statistics.duplicates(labels if images is None else images)
    return DataReport(summary, findings, header, rows, counts, hints, warnings=similar, **more)


def _partners(images: Path | None, files: Mapping[str, str], labels: Path) -> tuple[list[Finding], dict[str, Path]]:
    """Return findings for files without a partner, and `{label file: image}`."""
    if images is None:
        return [], {}
    image_files = list_files(images, IMAGE_SUFFIXES, what='images')
    try:
        pairs = match(image_files, files, where=str(labels))
    except DataError:
        pairs = {key: (name, files[key]) for key, name in image_files.items() if key in files}
    there = {name for name, _ in pairs.values()}
    matched = {label: images / name for name, label in pairs.values()}
    findings = [Finding('match', name, 'no label map') for name in image_files.values() if name not in there]
    return findings + [Finding('match', name, 'no image') for name in files.values() if name not in matched], matched


def _check_label_map(
    path: Path, image: Path | None, table: LabelTable | None, statistics: ImageStatistics
) -> tuple[list[Finding], dict[int, int], list[int]]:
    """Return the findings, how many pixels have each class (or each number, without a table), and unknown numbers."""
    findings: list[Finding] = []
    try:
        raw = read_label_map(path, max_pixels=statistics.options['max_pixels']).numpy()
    except DataError as error:
        return [Finding('label', path.name, f'{error.message}: {error.why}')], {}, []
    if image is not None:
        findings += _compare(path, image, raw.shape, statistics)
    if table is not None:
        findings += _renumbered(raw, path, table, statistics)
        try:
            raw = table.apply(raw, path)
        except DataError as error:
            unknown = [number for number in np.unique(raw).tolist() if number not in table.lookup]
            cause = error.message.removeprefix(f'{path.name}: ')
            return [*findings, Finding('label', path.name, error.message, cause)], {}, unknown
    numbers, counts = np.unique(raw, return_counts=True)
    return findings, dict(zip(numbers.tolist(), counts.tolist(), strict=True)), []


def _renumbered(raw: np.ndarray, path: Path, table: LabelTable, statistics: ImageStatistics) -> list[Finding]:
    try:
        table.check_palette(raw, path, label_colors(path, max_pixels=statistics.options['max_pixels']))
    except DataError as error:
        return [Finding('label', path.name, f'{error.message}: {error.why}')]
    return []


def _compare(path: Path, image: Path, shape: tuple[int, ...], statistics: ImageStatistics) -> Iterable[Finding]:
    try:
        size = tuple(statistics.read(image).shape[-2:])
    except DataError as error:
        return [Finding('image', image.name, f'{error.message}: {error.why}')]
    if size == shape:
        return []
    return [Finding('size', path.name, f'labels of (H, W) {tuple(shape)} for an image of {size}')]


def _label_hints(unknown_numbers: Counter[int], ignore: int | Sequence[int]) -> list[str]:
    """Return a hint where a few numbers of label maps are no class."""
    if not unknown_numbers or len(unknown_numbers) > FEW_NUMBERS:
        return []
    ignored = [ignore] if isinstance(ignore, int) else list(ignore)
    words = ', '.join(f'{number} (in {count:,} files)' for number, count in sorted(unknown_numbers.items()))
    return [
        f'if {words} is no class: --ignore {" ".join(map(str, dict.fromkeys([*ignored, *sorted(unknown_numbers)])))}'
    ]


def _label_rows(pixels: Counter[int], images: Counter[int], table: LabelTable | None) -> list[tuple[str, ...]]:
    total = max(1, sum(pixels.values()))
    names = None if table is None else table.metainfo['classes']['semantic']
    numbers = sorted(pixels) if names is None else [*range(len(names)), *([IGNORE] if IGNORE in pixels else [])]
    return [
        (
            str(number) if names is None else 'ignored' if number == IGNORE else names[number],
            f'{pixels[number]:,}',
            f'{100 * pixels[number] / total:.1f} %',
            f'{images[number]:,}',
        )
        for number in numbers
    ]
