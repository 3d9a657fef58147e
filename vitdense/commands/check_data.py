"""Checks of whole data sets; all errors are reported at once, and no file is written."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo
from vitdense.data.coco.parse import read_coco
from vitdense.data.files.image_check import ImageStatistics, dark_range
from vitdense.data.files.images import LABEL_SUFFIXES, MAX_PIXELS, UnreadableImage, label_colors, read_label_map
from vitdense.data.files.listing import find_files
from vitdense.data.files.opening import IMAGE_SUFFIXES
from vitdense.data.files.pairs import list_files, match, safe_below
from vitdense.data.files.similar_names import near_match
from vitdense.data.formats.open_labels import open_labels
from vitdense.data.label_map import LabelTable
from vitdense.errors import DataError
from vitdense.types import IGNORE

FEW_NUMBERS = 8  # numbers of label maps that are no class: for more of them there is no hint


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


OnProgress = Callable[[int, int], None]  # (done, total)


def check_coco(
    path: Path,
    images: Path | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
    threads: int = 2,
    on_progress: OnProgress | None = None,
    split: str | None = None,
) -> DataReport:
    """Check a COCO annotation file, or detection labels of another format, and the images below `images`.

    Raises DataError for a file of none of them. Beside what `read_coco` finds: `label` (a row of another format that
    cannot be used), `corners` (boxes are xyxy), `fractions` (boxes in [0, 1]), `no_objects` (no image, no
    annotation, or crowds only), `image` (missing or unreadable), `size` (it is not what the file says),
    `range` (images of 16 bits seem to have fewer; `value_range` names their range).
    """
    content = None if images is None else open_labels(path, images, split)
    arrays, info = read_coco(path, masks=True, data=None if content is None else content.encoded())
    counts = Counter(info.counts)
    findings = [Finding(kind, str(number), reason) for kind, number, reason in info.faults]
    if content is not None:
        findings += [Finding('label', *problem) for problem in content.problems]
        counts.update({'label': len(content.problems)} if content.problems else {})
    if not len(arrays.segments.data):  # boxes only
        findings = [finding for finding in findings if finding.kind != 'empty_segmentation']
        del counts['empty_segmentation']
    more, statistics = (
        list(_whole_file(path, arrays, info)),
        ImageStatistics(max_pixels=max_pixels, value_range=value_range),
    )
    if images is not None:
        jobs = [(arrays, row, images, statistics) for row in range(len(arrays.sizes))]
        more += [finding for finding in _each(_check_image, jobs, threads, on_progress) if finding]
        more += _range(images, statistics)
    counts.update(Counter(finding.kind for finding in more))  # those of single annotations are counted already
    summary = _summary_of(arrays, info, images) + statistics.notes()
    return DataReport(summary, [*findings, *more], *_histogram(arrays, info), dict(counts))


def _range(images: Path, statistics: ImageStatistics) -> list[Finding]:
    odd = dark_range(statistics.brightest)
    return [Finding('range', images.name, odd)] if odd else []


def _whole_file(path: Path, arrays: CocoArrays, info: CocoFileInfo) -> Iterator[Finding]:
    """Yield what is wrong with a file as a whole."""
    if info.corners is not None:
        reason = f'{info.corners:.0%} of boxes leave the image if read as xywh; they fit as xyxy'
        yield Finding('corners', path.name, reason)
    if info.fractions:
        yield Finding('fractions', path.name, 'all boxes lie in [0, 1]: they look like fractions of the image')
    if not len(arrays.sizes):
        yield Finding('no_objects', path.name, f'{path.name} lists no images')
    if not len(arrays.ids):
        yield Finding('no_objects', path.name, f'no annotations in {path.name}')
    elif arrays.crowd.all():
        yield Finding('no_objects', path.name, f'all {len(arrays.ids):,} annotations are crowds (iscrowd 1)')


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
    `no_objects` (fewer than two classes). Raises DataError where there is no such folder.
    """
    files = list_files(labels, LABEL_SUFFIXES, what='label maps')
    table = None if classes is None else LabelTable(classes, ignore=ignore, reduce_zero_label=reduce_zero_label)
    findings, partners = _partners(images, files, labels)
    statistics = ImageStatistics(max_pixels=max_pixels, value_range=value_range)
    jobs = [(labels / name, partners.get(name), table, statistics) for name in files.values()]
    pixels, image_counts, unknown_numbers = Counter[int](), Counter[int](), Counter[int]()
    for finding, numbers, unknown in _each(_check_label_map, jobs, threads, on_progress):
        findings += finding
        pixels.update(numbers)
        image_counts.update(numbers.keys())
        unknown_numbers.update(unknown)
    summary = [
        ('label maps', f'{len(files):,}'),
        ('images', 'not checked' if images is None else f'{len(partners):,}'),
    ]
    summary += statistics.notes()
    findings += _range(labels if images is None else images, statistics)
    present = (
        [] if table is None else [name for k, name in enumerate(table.metainfo['classes']['semantic']) if pixels[k]]
    )
    if table is not None and not findings and len(present) < 2:
        reason = f'{present[0]!r} is the only class with pixels' if present else 'no pixel has a class'
        findings.append(Finding('no_objects', labels.name, f'{reason}: classification needs two classes'))
    rows = _label_rows(pixels, image_counts, table)
    counts = dict(Counter(finding.kind for finding in findings))
    hints = _label_hints(unknown_numbers, ignore)
    return DataReport(summary, findings, ('class', 'pixels', 'share', 'images'), rows, counts, hints)


def check_folders(
    folder: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
    threads: int = 2,
    on_progress: OnProgress | None = None,
) -> DataReport:
    """Check the images below `folder`, which holds one folder for each class.

    Finds `image` (unreadable), `loose` (an image in no class folder), `other` (files that are not read as images),
    `empty` (a class folder without an image) and `range` (as `check_coco`). Raises DataError where there is no such
    folder, or no image in it.
    """
    files, left_out = find_files(folder, what='images')
    findings = [Finding('loose', name, 'it lies in no class folder') for name in files if '/' not in name]
    others = Counter(Path(name).suffix.lower() or 'no suffix' for name in left_out)
    findings += [Finding('other', suffix, f'{count} files that are not read') for suffix, count in others.items()]
    objects = Counter(name.split('/', 1)[0] for name in files if '/' in name)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.'))
    findings += [Finding('empty', name, 'no image in this class folder') for name in classes if not objects[name]]
    statistics = ImageStatistics(max_pixels=max_pixels, value_range=value_range)
    jobs = [(folder, name, statistics) for name in files]
    findings += [finding for finding in _each(_check_file, jobs, threads, on_progress) if finding]
    findings += _range(folder, statistics)
    rows = [(name, f'{objects[name]:,}', f'{100 * objects[name] / len(files):.1f} %') for name in classes]
    summary = [('images', f'{len(files):,}'), ('classes', f'{len(objects):,}'), *statistics.notes()]
    return DataReport(
        summary, findings, ('class', 'images', 'share'), rows, dict(Counter(finding.kind for finding in findings))
    )


def _check_file(folder: Path, name: str, statistics: ImageStatistics) -> Finding | None:
    try:
        statistics.read(folder / name)
    except DataError as error:
        return _unreadable(name, error)
    return None


def _each(
    function: Callable[..., Any], jobs: Sequence[tuple], threads: int, on_progress: OnProgress | None
) -> Iterator[Any]:
    """Yield `function(*job)` for every job, in order; decoders release the GIL."""
    with ThreadPoolExecutor(threads) as pool:
        for done, result in enumerate(pool.map(lambda job: function(*job), jobs), 1):
            if on_progress is not None:
                on_progress(done, len(jobs))
            yield result


# ------------------------------------------------------------------------------------------------------------- COCO


def _check_image(arrays: CocoArrays, row: int, images: Path, statistics: ImageStatistics) -> Finding | None:
    name, number = arrays.file_names[row], json.loads(arrays.image_ids[row])
    if '\\' in name:
        return None  # a finding of its own
    try:
        path = safe_below(images, name, where=f'image {number}')
        img = statistics.read(path)
    except DataError as error:
        near = near_match(images, name) if isinstance(error, UnreadableImage) and not os.path.exists(path) else ''
        return _unreadable(str(number), error, near)
    size, stated = tuple(img.shape[-2:]), tuple(arrays.sizes[row].tolist())
    if stated == (0, 0):
        return Finding('size', str(number), f'{name}: the file does not say its width and height')
    if size == stated:
        return None
    turned = '; an EXIF flag was ignored when it was annotated' if size == stated[::-1] else ''
    return Finding('size', str(number), f'{name}: (H, W) {size}, but the annotation file says {stated}{turned}')


def _unreadable(where: str, error: DataError, more: str = '') -> Finding:
    return Finding('image', where, f'{error.message}: {error.why}{"; " if more else ""}{more}'.replace('\n', ' '))


def _summary_of(arrays: CocoArrays, info: CocoFileInfo, images: Path | None) -> list[tuple[str, str]]:
    empty = int((np.diff(arrays.starts) == 0).sum())
    with_segments = int((np.diff(arrays.segments.ends, prepend=0) > 0).sum())
    ids = info.category_ids
    root = '' if info.root is None else f'; id {info.root} only groups the others and is no class'
    gaps = '' if ids == list(range(ids[0], ids[0] + len(ids))) else ', with gaps'
    return [
        ('images', f'{len(arrays.sizes):,}' + ('' if images else ' (not checked: no folder given)')),
        ('images without annotations', f'{empty:,}'),
        ('annotations', f'{len(arrays.ids):,}'),
        ('crowds', f'{int(arrays.crowd.sum()):,}'),
        ('with segmentation', f'{with_segments:,}'),
        ('categories', f'{len(ids)}, ids {ids[0]} ... {ids[-1]}{gaps}{root}'),
    ]


def _histogram(arrays: CocoArrays, info: CocoFileInfo) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of the table of classes."""
    image = np.repeat(np.arange(len(arrays.sizes)), np.diff(arrays.starts))
    rows = []
    for label, (number, name) in enumerate(zip(info.category_ids, info.names, strict=True)):
        if number == info.root:
            continue
        mine = arrays.labels == label
        objects = int((mine & ~arrays.crowd).sum())
        share = objects / max(1, int((~arrays.crowd).sum()))
        num_images = len(np.unique(image[mine]))
        rows.append(
            (
                name,
                str(number),
                f'{objects:,}',
                f'{100 * share:.1f} %',
                f'{num_images:,}',
                f'{int(mine.sum()) - objects:,}',
            )
        )
    return ('class', 'id', 'objects', 'share', 'images', 'crowds'), rows


# ------------------------------------------------------------------------------------------------------- label maps


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
