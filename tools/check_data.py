"""Report what is wrong with a data set, without changing anything.

    python tools/check_data.py instances_train2017.json train2017
    python tools/check_data.py annotations/training images/training --classes ade20k --reduce-zero-label

DATA is a COCO annotation file, or a folder of label maps; IMAGES is the folder of the pictures (without it they are not
looked at). Says which ids and boxes are wrong, which pictures are unreadable or of another size, and how often every
class occurs. Leaves with 0 when nothing is wrong, and with 3 when something is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitdense.engine.commandline import Parser, run

if TYPE_CHECKING:
    from vitdense.data.checking import Report

WRONG = 3  # exit code of data that cannot be used as it is


def parser() -> Parser:
    """Return the parser of the tool's arguments."""
    made = Parser(prog='check_data.py', description=__doc__)
    made.add_argument('data', metavar='DATA', help='a COCO annotation file, or a folder of label maps')
    made.add_argument('images', metavar='IMAGES', nargs='?', help='the folder of the pictures')
    made.add_argument('--classes', metavar='C', help='label maps: names in a file, or ade20k, cityscapes, voc, camvid')
    made.add_argument('--num-classes', type=int, metavar='K', help='label maps: how many classes, without names')
    made.add_argument('--ignore', type=int, nargs='+', default=[255], metavar='V', help='label maps: what is no class')
    made.add_argument('--reduce-zero-label', action='store_true', help='label maps: 0 is no class, 1 ... K are')
    made.add_argument('--shown', type=int, default=50, metavar='N', help='findings of a kind to print (%(default)s)')
    made.add_argument('--out', metavar='FILE', help='write all findings and counts to this json file')
    made.add_argument('--workers', type=int, metavar='N', help='threads that read pictures')
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Check as `argv` says; return 0, or 3 when something is wrong."""
    args = parser().parse_args(argv)
    from pathlib import Path  # heavy from here on: after the arguments are known to be right

    from vitdense.data.checking import check_coco, check_labels
    from vitdense.engine.console import progress, start_logging
    from vitdense.engine.resources import cpu_count

    start_logging(None)
    data, images = Path(args.data), None if args.images is None else Path(args.images)
    check_folder(images)
    with progress('checking') as tell:
        common: dict[str, Any] = dict(threads=args.workers or cpu_count(), tell=tell)
        if data.is_dir():
            names = args.classes or (args.num_classes and [f'class {k}' for k in range(args.num_classes)])
            common |= dict(classes=names, ignore=args.ignore, reduce_zero_label=args.reduce_zero_label)
            report = check_labels(data, images, **common)
        else:
            report = check_coco(data, images, **common)
    show(report, args.shown)
    if args.out is not None:
        write(report, Path(args.out))
    return WRONG if report.findings else 0


def check_folder(images: Any) -> None:
    """Raise DataError when the folder of pictures is none: every picture would be missing."""
    from vitdense.errors import DataError

    if images is not None and not images.is_dir():
        raise DataError(
            f'no folder of pictures: {images}', where='IMAGES', why='it does not exist', fix='check the path'
        )


def show(report: Report, shown: int) -> None:
    """Print what was looked at, the classes, and what is wrong."""
    from vitdense.engine.console import console, print_table
    from vitdense.engine.progress import fold

    for name, value in report.facts:
        console().print(f'{name}: {value}')
    print_table('classes', *fold(report.header, report.classes, width=console().width))
    kinds = dict.fromkeys(finding.kind for finding in report.findings)
    for kind in kinds:
        rows = [(finding.where, finding.reason) for finding in report.findings if finding.kind == kind]
        console().print(f'{kind}: {report.counts[kind]:,}', style='bold')
        for where, reason in rows[:shown]:
            console().print(f'  {where}: {reason}')
        if report.counts[kind] > len(rows[:shown]):
            console().print(f'  ... and {report.counts[kind] - len(rows[:shown]):,} more (--shown, --out)')
    total = sum(report.counts.values())
    console().print(f'{total:,} findings' if kinds else 'nothing is wrong', style='bold')


def write(report: Report, path: Any) -> None:
    """Write the report as json."""
    from vitdense.engine.history import write_json

    content = {
        'facts': dict(report.facts),
        'counts': report.counts,
        'findings': [finding._asdict() for finding in report.findings],
        'classes': [dict(zip(report.header, row, strict=True)) for row in report.classes],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


if __name__ == '__main__':
    run(main)
