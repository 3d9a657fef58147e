"""Repeat the training step at which a run ended because its numbers were not finite.

    python tools/replay_nan.py work_dirs/shapes/debug/nan_replay.pt

Prints the tensors that are not finite in the order in which they are computed: `parameter`, `buffer`, `input`, `output`
of a module, `loss`, `gradient`. Exit code 0: they are those of the run; 1: they are others. No code in the file is run.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='replay_nan.py', description=__doc__)
    parser.add_argument('file', metavar='FILE', help='debug/nan_replay.pt of a work directory')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Repeat the step of the file that `argv` names; return whether its tensors differ."""
    args = make_parser().parse_args(argv)
    from vitdense.replay.files import replay  # heavy: after the arguments are known to be right
    from vitdense.reporting.console import console, start_logging

    start_logging(None)
    content, names = replay(args.file)
    print_line = console().print
    print_line(f'step {content["step"]}: {content["error"]}', markup=False, highlight=False)
    for name in names or ['every tensor is finite']:
        print_line(name, markup=False, highlight=False)
    before = content['non_finite']
    if before is None:
        print_line('several processes trained: the run did not list its tensors')
        return 0
    print_line('the same tensors as in the run' if names == before else f'other tensors than in the run: {before}')
    return int(names != before)


if __name__ == '__main__':
    run(main)
