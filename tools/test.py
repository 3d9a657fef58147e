"""Evaluate a checkpoint.

    python tools/test.py work_dirs/shapes/config.py work_dirs/shapes/best.pth --out predictions
    python tools/test.py work_dirs/shapes                  # the same: the folder of a run stands for both
    python tools/test.py MODEL --data FOLDER --split test  # any trained or exported model, on labelled images

CHECKPOINT is a .pth of a run (the averaged weights are taken where there are any), a model folder, a name of `vitdense
models`, or a file of weights of the whole model: for a config that takes over a published classifier, timm's own file,
or nothing at all. Writes metrics.json with keys HEAD/METRIC in [0, 1]. A config is a Python program and runs when it is
read.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='test.py', description=__doc__)
    parser.add_shared('config', help='a config file, configs/... of the installed package, or the folder of a run')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', nargs='?', help='a checkpoint, a model folder or a file of weights'
    )
    parser.add_argument('--data', metavar='FOLDER', help='test on the images of this folder, as --data of train.py')
    parser.add_argument('--split', choices=('train', 'val', 'test'), help='of the folder (default: test, else val)')
    parser.add_argument('--work-dir', metavar='D', help='where scores go (default: work_dirs/NAME_OF_CONFIG/test)')
    parser.add_argument('--out', metavar='D', help='write label maps (numbers of classes as trained) and scores here')
    parser.add_argument(
        '--save-thresholds',
        action='store_true',
        help='write the score thresholds of best F1 and the temperature found here to the model folder of CHECKPOINT',
    )
    parser.add_argument('--show-dir', metavar='D', help='write images with the predictions drawn on them here')
    parser.add_argument(
        '--tta', action='store_true', help="average over the scales and flips of the config's model.tta"
    )
    parser.add_shared(
        '--device', '--amp', '--workers', '--compile', '--cfg-options', '--skip-bad-eval', '--accept-licence'
    )
    parser.add_shared('--trust-checkpoint', '--safe')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate as `argv` says."""
    args = make_parser().parse_args(argv)
    import vitdense.commands.test as testing  # heavy: after the arguments are known to be right
    from vitdense.checkpoints.model_config import config_from_model
    from vitdense.checkpoints.run_folder import config_and_checkpoint
    from vitdense.commands.models import trained_model
    from vitdense.config.load import load_config
    from vitdense.export.folder import is_exported
    from vitdense.reporting.console import start_logging

    if args.data is not None:
        start_logging(None, keep=True)  # so that the format of the folder is shown
    options = [f'amp={args.amp}'] if args.amp else []
    options += args.cfg_options or ()
    if args.data is not None and args.checkpoint is None and not args.config.endswith('.py'):
        checkpoint = trained_model(args.config, accept_licence=args.accept_licence)
        described = dict(options=options, workers=args.workers, split=args.split)
        cfg, weights = config_from_model(checkpoint, args.data, **described)
        checkpoint = checkpoint if is_exported(checkpoint) else weights
    else:
        config, checkpoint = config_and_checkpoint(args.config, args.checkpoint)
        checkpoint = trained_model(checkpoint, accept_licence=args.accept_licence)
        cfg = load_config(config, options, workers=args.workers, data=args.data, split=args.split, safe=args.safe)
    testing.test(
        cfg,
        checkpoint,
        work_dir=args.work_dir,
        out=args.out,
        show_dir=args.show_dir,
        device=args.device,
        tta=args.tta,
        compiled=args.compile,
        skip_bad_eval=args.skip_bad_eval,
        save_thresholds=args.save_thresholds,
    )


if __name__ == '__main__':
    run(main)
