"""Combine heads that were trained on one backbone into one model, or split a model into its heads.

    python tools/merge_heads.py work_dirs/det/model --head sem=work_dirs/sem/heads/sem.json --out work_dirs/both
    python tools/merge_heads.py work_dirs/both --split heads

BASE is a model folder: its backbone and heads stay as they are. NAME=PATH is a head file (--add-head and --split write
them) or a model folder with a head NAME. Heads of another backbone are refused: other weights, patch size, windows,
normalisation or interacting adapter. No code in the files is run.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='merge_heads.py', description=__doc__)
    parser.add_argument('base', metavar='BASE', help='a model folder')
    parser.add_argument(
        '--head', action='append', default=[], metavar='NAME=PATH', help='a head to add; may be repeated'
    )
    parser.add_argument('--out', metavar='DIR', help='the model folder to write')
    parser.add_argument('--split', metavar='DIR', help='write the heads of BASE as files into this folder')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Merge or split as `argv` says."""
    parser = make_parser()
    args = parser.parse_args(argv)
    heads = dict(_pair(parser, word) for word in args.head)
    if len(heads) < len(args.head):
        parser.error('two heads have one name')
    if (args.split is None) == (args.out is None) or bool(heads) != (args.out is not None):
        parser.error('give --head NAME=PATH (one or more) and --out DIR, or --split DIR')
    from vitdense.multihead.merge import merge_heads, split_heads
    from vitdense.reporting.console import console, start_logging  # heavy: after the arguments are known to be right

    start_logging(None)
    if args.split is not None:
        for path in split_heads(args.base, args.split):
            console().print(str(path))
        return
    model = merge_heads(args.base, heads, args.out)
    console().print(f'{args.out}: {", ".join(model.network.names)} on one backbone')


def _pair(parser: Parser, word: str) -> tuple[str, str]:
    name, equals, path = word.partition('=')
    if not (name.isidentifier() and equals and path):
        parser.error(f"'{word}' is not NAME=PATH")
    return name, path


if __name__ == '__main__':
    run(main)
