"""Report errors of a data set, without changing it.

    python tools/check_data.py instances_train2017.json train2017
    python tools/check_data.py annotations/training images/training --classes ade20k --reduce-zero-label
    python tools/check_data.py data/flowers/train

DATA is a COCO annotation file, YOLO's data.yaml or a CSV file of boxes; a folder of label maps, of PASCAL VOC's XML
files, or with one folder of images for each class; or the folder that holds these. IMAGES is the folder of the images
(without it, those of a single COCO file or of label maps are not checked). Lists wrong ids and boxes, images that are
missing, unreadable or of another size, and the frequency of every class. Warns of images that are nearly the same, also
in several splits, of objects that are labelled twice, of boxes of unusual sizes, and of classes that are rare or
missing in a split. The exit code is 0 when nothing is wrong (there may be warnings), and 3 when something is.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitdense.commands.parser import Parser, count, positive, run

if TYPE_CHECKING:
    from vitdense.data.files.layouts import Part
    from vitdense.dataset_checks.report import DataReport, Finding

WRONG = 3  # exit code of data that cannot be used as it is


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='check_data.py', description=__doc__)
    parser.add_argument('data', metavar='DATA', help='a COCO annotation file, or a folder: label maps, class folders')
    parser.add_argument('images', metavar='IMAGES', nargs='?', help='the folder of the images')
    parser.add_argument(
        '--classes',
        metavar='C',
        help='label maps: names in a file, or ade20k, cityscapes, voc, camvid (default: classes.txt in DATA)',
    )
    parser.add_shared('--num-classes', '--reduce-zero-label', '--value-range')
    parser.add_argument(
        '--ignore', type=int, nargs='+', default=[255], metavar='V', help='label maps: what is no class'
    )
    parser.add_argument(
        '--shown', type=count, default=50, metavar='N', help='findings of a kind to print (%(default)s)'
    )
    parser.add_argument('--out', metavar='FILE', help='write all findings and counts to this json file')
    parser.add_argument('--report', metavar='FILE', help='write a page with images (HTML) to this file')
    parser.add_argument('--workers', type=positive, metavar='N', help='threads that read images')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check as `argv` says; return 0, or 3 when something is wrong."""
    args = make_parser().parse_args(argv)
    from pathlib import Path  # heavy from here on: after the arguments are known to be right

    from vitdense.data.formats.labelled_folder import class_file, parts_to_check
    from vitdense.dataset_checks.across_splits import compare_splits
    from vitdense.reporting.console import start_logging
    from vitdense.storage.atomic import make_folder

    start_logging(None)
    for file in filter(None, (args.out, args.report)):
        make_folder(Path(file).parent, writable=True)
    data, images = Path(args.data), None if args.images is None else Path(args.images)
    check_folder(images)
    names = args.classes or (args.num_classes and [f'class {k}' for k in range(args.num_classes)])
    labels = dict(classes=names or class_file(data), ignore=args.ignore, reduce_zero_label=args.reduce_zero_label)
    parts = parts_to_check(data, images, labels=bool(names) or args.reduce_zero_label)
    reports = {}
    for part in parts:
        report = check_part(part, labels, args, alone=len(parts) == 1)
        reports[name_of(part, data)] = report
        if len(parts) > 1:
            print_part(part)
        show(report, args.shown)
    across = compare_splits(reports, data)
    show_warnings(across, args.shown)
    if args.out is not None:
        write(reports, across, Path(args.out))
    if args.report is not None:
        by_name = dict(zip(reports, zip(parts, reports.values(), strict=True), strict=True))
        write_page(data, by_name, across, labels, Path(args.report))
    return WRONG if any(report.findings for report in reports.values()) else 0


def check_part(part: Part, labels: dict[str, Any], args: Namespace, *, alone: bool) -> DataReport:
    """Return the report about one part. Among several, one that cannot be read at all is a finding."""
    from vitdense.dataset_checks.check_class_folders import check_folders
    from vitdense.dataset_checks.check_coco import check_coco
    from vitdense.dataset_checks.check_label_maps import check_labels
    from vitdense.dataset_checks.report import DataReport, Finding
    from vitdense.device import cpu_count
    from vitdense.errors import DataError
    from vitdense.reporting.console import progress

    with progress('checking') as on_progress:
        threads = args.workers or cpu_count()
        common: dict[str, Any] = dict(threads=threads, on_progress=on_progress, value_range=args.value_range)
        try:
            if part.kind == 'coco':
                return check_coco(part.data, part.images, split=part.split, **common)
            if part.kind == 'labels':
                return check_labels(part.data, part.images, **labels, **common)
            return check_folders(part.data, **common)
        except DataError as error:
            if alone:
                raise
            finding = Finding('file', part.data.name, f'{error.message}: {error.why}')
            return DataReport([], [finding], ('class',), [], {'file': 1})


def name_of(part: Part, root: Any) -> str:
    """Return the path of a part below `root`, and its split where the path has several."""
    path = part.data.relative_to(root) if part.data != root and part.data.is_relative_to(root) else part.data
    return ' '.join(filter(None, (path.as_posix(), part.split)))


def print_part(part: Part) -> None:
    """Print the paths of a part."""
    from vitdense.reporting.console import console

    images = '' if part.images is None else f', images in {part.images}'
    split = '' if part.split is None else f' ({part.split})'
    console().print(f'\n{part.data}{split}{images}', style='bold')


def check_folder(images: Any) -> None:
    """Raise DataError when there is no folder of images."""
    from vitdense.errors import DataError

    if images is not None and not images.is_dir():
        raise DataError(f'no folder of images: {images}', where='IMAGES', why='it does not exist', fix='check the path')


def show(report: DataReport, shown: int) -> None:
    """Print the summary, the classes and the findings."""
    from vitdense.reporting.console import console, print_table
    from vitdense.reporting.progress import fold

    for name, value in report.summary:
        console().print(f'{name}: {value}')
    if report.classes:
        print_table('classes', *fold(report.header, report.classes, width=console().width))
    for kind in dict.fromkeys(finding.kind for finding in report.findings):
        console().print(f'{kind}: {report.counts[kind]:,}', style='bold')
        lines, printed = lines_of([finding for finding in report.findings if finding.kind == kind], shown)
        for line in lines:
            console().print(f'  {line}')
        if report.counts[kind] > printed:
            console().print(f'  ... and {report.counts[kind] - printed:,} more (--shown, --out)')
    for hint in report.hints:
        console().print(hint)
    show_warnings(report.warnings, shown)
    total = sum(report.counts.values())
    right = 'no errors' if report.warnings else 'nothing is wrong'
    console().print(f'{total:,} finding{"s" * (total != 1)}' if report.findings else right, style='bold')


def show_warnings(warnings: Sequence[Finding], shown: int) -> None:
    """Print findings that may be intended."""
    from vitdense.dataset_checks.report import TITLES
    from vitdense.reporting.console import console

    for kind in dict.fromkeys(warning.kind for warning in warnings):
        some = [warning for warning in warnings if warning.kind == kind]
        console().print(f'warning, {TITLES[kind]}: {len(some):,}', style='bold')
        for warning in some[:shown]:
            console().print(f'  {warning.where}: {warning.reason}')
        if len(some) > shown:
            console().print(f'  ... and {len(some) - shown:,} more (--shown, --out)')


def lines_of(findings: Sequence[Finding], shown: int) -> tuple[list[str], int]:
    """Return the lines to print, at most `shown`, and how many findings are in them; one line for each cause."""
    by_cause: dict[str, list[Finding]] = {}
    for finding in findings:
        by_cause.setdefault(finding.cause or f'{finding.where}: {finding.reason}', []).append(finding)
    lines, printed = [], 0
    for cause, some in list(by_cause.items())[:shown]:
        names = ', '.join(finding.where for finding in some[:3])
        alone = len(some) == 1 or not some[0].cause
        lines += (
            [f'{finding.where}: {finding.reason}' for finding in some]
            if alone
            else [f'{len(some):,} files, such as {names}: {cause}']
        )
        printed += len(some)
    return lines, printed


def write_page(
    root: Any, parts: Mapping[str, Any], across: Sequence[Finding], labels: dict[str, Any], path: Any
) -> None:
    """Write the page with images."""
    from vitdense.dataset_checks.report_page import page
    from vitdense.reporting.console import console
    from vitdense.storage.atomic import write_text

    write_text(path, page(root, parts, across, labels))
    console().print(f'images and findings are in {path}')


def write(reports: Mapping[str, DataReport], across: Sequence[Finding], path: Any) -> None:
    """Write the reports as json: `parts` by their files and folders, and what was found `across_splits`."""
    from vitdense.storage.atomic import write_json

    contents = {
        name: {
            'summary': dict(report.summary),
            'counts': report.counts,
            'findings': [finding._asdict() for finding in report.findings],
            'classes': [dict(zip(report.header, row, strict=True)) for row in report.classes],
            'hints': list(report.hints),
            'warnings': [warning._asdict() for warning in report.warnings],
        }
        for name, report in reports.items()
    }
    write_json(path, {'parts': contents, 'across_splits': [warning._asdict() for warning in across]})


if __name__ == '__main__':
    run(main)
