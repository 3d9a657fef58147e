"""Write the samples of a labelled folder as tar shards, for object stores and slow disks.

    python tools/shards.py data/yard data/yard_shards
    python tools/shards.py --index data/imagenet_shards/train

FOLDER holds COCO, YOLO, PASCAL VOC or CSV labels, images and masks, or class folders, as for train.py --data. Each
split becomes a folder of tar files with an index, and beside it the labels; what a config needs is printed. With
--index, the index of tar files that lie in FOLDER already is written. Files of FOLDER stay as they are. docs/shards.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, rate, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='shards.py', description=__doc__)
    parser.add_argument('folder', metavar='FOLDER', help='labelled images; with --index: the folder of the shards')
    parser.add_argument('out', metavar='OUT', nargs='?', help='the folder for the shards')
    parser.add_argument('--index', action='store_true', help='write the index of the tar files in FOLDER')
    parser.add_argument('--max-mb', type=rate, default=1000, metavar='N', help='size of a shard (%(default)s MB)')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write as `argv` says."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.index == (args.out is not None):
        parser.error('give FOLDER and OUT, or --index and the folder of the shards')
    from pathlib import Path  # heavy from here on: after the arguments are known to be right

    from vitdense.commands.shards import index_shards, shard_folder
    from vitdense.reporting.console import console, start_logging

    start_logging(None)
    if args.index:
        console().print(f'{index_shards(Path(args.folder)):,} files are in the index')
        return
    splits = shard_folder(Path(args.folder), Path(args.out), max_bytes=int(args.max_mb * 1e6))
    console().print(f'data_root = {args.out!r}')
    for split, arguments in splits.items():
        console().print(f'{split}: ' + ', '.join(f'{key}={value!r}' for key, value in arguments.items()))


if __name__ == '__main__':
    run(main)
