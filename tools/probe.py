"""Probe backbones: nearest neighbours and a linear head on features that are computed once.

    python tools/probe.py configs/classification/linear_vit_ti_imagenette.py
    python tools/probe.py configs/semantic/linear_dinov2_s_ade20k.py \\
        --backbones vit_small_patch14_dinov2.lvd142m vit_small_patch16_224=mine.safetensors

CONFIG is one with a ClassHead or a LinearHead; its data, evaluation transforms and metrics are used. Images pass
whole, without windows and augmentation. Features are cached in $VITDENSE_CACHE (default ~/.cache/vitdense): an
interrupted probe continues. The learning rate of the linear head is chosen on a tenth of the training images. Writes
probe.json; scores are in [0, 1]. A config is a Python program and runs when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, positive, rate, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='probe.py', description=__doc__)
    parser.add_shared('config', '--device', '--workers', '--cfg-options', '--safe')
    parser.add_argument('--heads', metavar='H,H', help='knn, linear, or both (default: what the task allows)')
    parser.add_argument('--backbones', nargs='+', default=[], metavar='N[=FILE]', help="timm's names, with own weights")
    parser.add_argument('--weights', nargs='+', default=[], metavar='FILE', help="files for the config's backbone")
    parser.add_argument('--branch', metavar='B', help='which linear head of the config (default: the first)')
    parser.add_argument('--lrs', nargs='+', type=rate, default=[], metavar='LR', help='learning rates to try')
    parser.add_argument(
        '--steps', type=positive, metavar='N', help='steps of the linear head (default: 1000; label maps 400)'
    )
    parser.add_argument('--work-dir', metavar='D', help='where probe.json goes (default: work_dirs/CONFIG/probe)')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Probe as `argv` says."""
    args = make_parser().parse_args(argv)
    from vitdense.config.load import load_config  # heavy: after the arguments are known to be right
    from vitdense.probing.probe import probe

    probe(
        load_config(args.config, args.cfg_options or (), workers=args.workers, safe=args.safe),
        heads=args.heads.split(',') if args.heads else None,
        backbones=args.backbones,
        weights=args.weights,
        branch=args.branch,
        rates=args.lrs,
        steps=args.steps,
        work_dir=args.work_dir,
        device=args.device,
    )


if __name__ == '__main__':
    run(main)
