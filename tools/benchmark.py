"""Measure a model: parameters, FLOPs, the time of every stage, throughput and memory, over image sizes.

    python tools/benchmark.py configs/semantic/linear_dinov2_s_ade20k.py --size 512 1024
    python tools/benchmark.py CONFIG --size 480x640 --compile --amp bf16 --device cuda

Weights and images are random: neither weights nor data are needed. Images of the given sizes pass the network whole.
Prints a table and writes benchmark.json and benchmark.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vitdense.commands.parser import Parser, positive, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='benchmark.py', description=__doc__)
    parser.add_shared('config')
    parser.add_argument(
        '--size', type=_size, nargs='+', default=[(512, 512)], metavar='S', help='sides, or HxW (default: 512)'
    )
    parser.add_argument('--batch', type=positive, default=1, metavar='N', help='images in a batch (%(default)s)')
    parser.add_argument('--repeat', type=positive, default=5, metavar='N', help='runs that count (%(default)s)')
    parser.add_argument(
        '--amp',
        nargs='?',
        const='auto',
        default='off',
        choices=('auto', 'bf16', 'fp16', 'off'),
        help='precision of the network (default: off; --amp alone: auto)',
    )
    parser.add_shared('--compile', '--device', '--num-classes', '--cfg-options', '--safe')
    parser.add_argument('--out', default='work_dirs/benchmark', metavar='D', help='folder of the files (%(default)s)')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure as `argv` says."""
    args = make_parser().parse_args(argv)
    from pathlib import Path  # heavy from here on: after the arguments are known to be right

    from vitdense.commands import benchmark as benchmarking
    from vitdense.config.load import load_config
    from vitdense.reporting.console import start_logging
    from vitdense.storage.atomic import make_folder

    start_logging(None)
    make_folder(Path(args.out), writable=True)
    cfg = load_config(args.config, args.cfg_options or (), safe=args.safe)
    model = benchmarking.model_of(cfg, num_classes=args.num_classes)
    report = benchmarking.benchmark(
        model,
        args.size,
        device=args.device,
        amp=args.amp,
        compiled=args.compile,
        batch=args.batch,
        repeat=args.repeat,
    )
    benchmarking.show(report)
    benchmarking.save(report, Path(args.out))


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdecimal() and (width or height).isdecimal() and int(height) * int(width or height)):
        raise argparse.ArgumentTypeError(f'{text!r} is no size: a side such as 512, or HxW such as 480x640')
    return int(height), int(width or height)


if __name__ == '__main__':
    run(main)
