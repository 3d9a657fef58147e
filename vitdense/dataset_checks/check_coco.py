"""Checks of detection labels and their images; all errors are reported at once, and no file is written."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitdense.data.coco.arrays import CocoArrays, CocoFileInfo
from vitdense.data.coco.parse import read_coco
from vitdense.data.files.images import MAX_PIXELS, UnreadableImage
from vitdense.data.files.pairs import safe_below
from vitdense.data.files.similar_names import near_match
from vitdense.data.formats.open_labels import open_labels
from vitdense.dataset_checks.image_statistics import ImageStatistics, range_findings
from vitdense.dataset_checks.labelled_objects import odd_objects, rare_classes
from vitdense.dataset_checks.report import DataReport, Finding, OnProgress, for_each, unreadable
from vitdense.errors import DataError


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
    `range` (images of 16 bits seem to have fewer; `value_range` names their range). Warns of `twice`, `unusual`
    (see `odd_objects`), `rare` classes and `similar` images.
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
    more = list(_whole_file(path, arrays, info))
    statistics = ImageStatistics(max_pixels=max_pixels, value_range=value_range)
    if images is not None:
        jobs = [(arrays, row, images, statistics) for row in range(len(arrays.sizes))]
        more += [finding for finding in for_each(_check_image, jobs, threads, on_progress) if finding]
        more += range_findings(images, statistics)
    counts.update(Counter(finding.kind for finding in more))  # those of single annotations are counted already
    summary = _summary_of(arrays, info, images) + statistics.notes()
    objects = _objects(arrays, info)
    warnings = [*odd_objects(arrays, info), *rare_classes(objects, 'objects')]
    return DataReport(
        summary,
        [*findings, *more],
        *_histogram(arrays, info),
        dict(counts),
        warnings=warnings + statistics.duplicates(path.parent if images is None else images),
        objects=objects,
        fingerprints=statistics.fingerprints,
    )


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


def _check_image(arrays: CocoArrays, row: int, images: Path, statistics: ImageStatistics) -> Finding | None:
    name, number = arrays.file_names[row], json.loads(arrays.image_ids[row])
    if '\\' in name:
        return None  # a finding of its own
    try:
        path = safe_below(images, name, where=f'image {number}')
        img = statistics.read(path)
    except DataError as error:
        near = near_match(images, name) if isinstance(error, UnreadableImage) and not os.path.exists(path) else ''
        return unreadable(str(number), error, near)
    size, stated = tuple(img.shape[-2:]), tuple(arrays.sizes[row].tolist())
    if stated == (0, 0):
        return Finding('size', str(number), f'{name}: the file does not say its width and height')
    if size == stated:
        return None
    turned = '; an EXIF flag was ignored when it was annotated' if size == stated[::-1] else ''
    return Finding('size', str(number), f'{name}: (H, W) {size}, but the annotation file says {stated}{turned}')


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


def _objects(arrays: CocoArrays, info: CocoFileInfo) -> dict[str, int]:
    """Return the number of objects of each class, without crowds."""
    counts = np.bincount(arrays.labels[~arrays.crowd], minlength=len(info.names)).tolist()
    rows = zip(info.category_ids, info.names, counts, strict=True)
    return {name: count for number, name, count in rows if number != info.root}


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
