"""Checks of folders that hold one folder of images for each class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from vitdense.data.files.images import MAX_PIXELS
from vitdense.data.files.listing import find_files
from vitdense.dataset_checks.image_statistics import ImageStatistics, range_findings
from vitdense.dataset_checks.labelled_objects import rare_classes
from vitdense.dataset_checks.report import DataReport, Finding, OnProgress, for_each, unreadable
from vitdense.errors import DataError


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
    `empty` (a class folder without an image) and `range` (as `check_coco`). Warns of `rare` classes and
    `similar` images. Raises DataError where there is no such
    folder, or no image in it.
    """
    files, left_out = find_files(folder, what='images')
    findings = [Finding('loose', name, 'it lies in no class folder') for name in files if '/' not in name]
    others = Counter(Path(name).suffix.lower() or 'no suffix' for name in left_out)
    findings += [Finding('other', suffix, f'{count} files that are not read') for suffix, count in others.items()]
    images_of = Counter(name.split('/', 1)[0] for name in files if '/' in name)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.'))
    findings += [Finding('empty', name, 'no image in this class folder') for name in classes if not images_of[name]]
    statistics = ImageStatistics(max_pixels=max_pixels, value_range=value_range)
    jobs = [(folder, name, statistics) for name in files]
    findings += [finding for finding in for_each(_check_file, jobs, threads, on_progress) if finding]
    findings += range_findings(folder, statistics)
    rows = [(name, f'{images_of[name]:,}', f'{100 * images_of[name] / len(files):.1f} %') for name in classes]
    summary = [('images', f'{len(files):,}'), ('classes', f'{len(images_of):,}'), *statistics.notes()]
    objects = {name: images_of[name] for name in classes}
    return DataReport(
        summary,
        findings,
        ('class', 'images', 'share'),
        rows,
        dict(Counter(finding.kind for finding in findings)),
        warnings=[*rare_classes(objects, 'images'), *statistics.duplicates(folder)],
        objects=objects,
        fingerprints=statistics.fingerprints,
    )


def _check_file(folder: Path, name: str, statistics: ImageStatistics) -> Finding | None:
    try:
        statistics.read(folder / name)
    except DataError as error:
        return unreadable(name, error)
    return None
