"""List the published models that can be used by name, and what of them is here.

    python tools/models.py
    python tools/models.py rf-detr --json

A name stands wherever a trained model is expected: demo.py and train.py --model NAME, finetune, test.py, export.py,
vitdense.load('NAME'). Its files are fetched from their publisher and converted at the first use; without a network, put
them into the folder that the error names. Numbers are those of the publishers (docs/models.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from vitdense.commands.parser import Parser, run
from vitdense.errors import ConfigError


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='models.py', description=__doc__)
    parser.add_argument('word', metavar='WORD', nargs='?', default='', help='list only names that contain it')
    parser.add_argument('--json', action='store_true', help='print a JSON list with all that is known of each')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """List as `argv` says."""
    args = make_parser().parse_args(argv)
    from vitdense.commands.models import list_models, show_models  # heavy: after the arguments are known to be right

    rows = list_models(args.word)
    if not rows:
        raise ConfigError(
            f"no published model has '{args.word}' in its name",
            where='models.py',
            why='names are those of the table in docs/models.md',
            fix='leave the word out to see all of them',
        )
    print(json.dumps(rows, indent=2)) if args.json else show_models(rows)


if __name__ == '__main__':
    run(main)
