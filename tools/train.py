"""Train a model.

    python tools/train.py configs/quickstart/shapes.py

    python tools/train.py CONFIG --add-head NAME --weights work_dirs/shapes/model

The second form adds the branch NAME of CONFIG to a trained model, whose backbone and heads stay as they are.
A config is a Python program and runs when it is read. Options change it: --cfg-options K=V, for example
schedule.max_iters=2000 train_dataloader.batch_size=4; +K=V adds a key that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, count, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='train.py', description=__doc__)
    parser.add_shared('config')
    parser.add_argument(
        '--data',
        metavar='FOLDER',
        help='train on the images of this folder: COCO, YOLO, PASCAL VOC, CSV, images and masks, or class folders',
    )
    parser.add_argument('--work-dir', metavar='D', help='where results go (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from a checkpoint or work directory; without PATH from the newest checkpoint of the work directory.'
        ' Weights and moments come from there, everything else from CONFIG (docs/resume.md)',
    )
    parser.add_argument('--weights', metavar='PATH', help='begin with these weights of the whole model')
    parser.add_argument(
        '--add-head',
        metavar='NAME',
        help='train this branch of CONFIG alone, on the trained model of --weights (a model folder or checkpoint)',
    )
    parser.add_argument('--seed', type=count, metavar='N', help='seed of everything random')
    parser.add_shared('--device', '--amp', '--workers', '--compile', '--cfg-options', '--skip-bad-eval')
    parser.add_argument('--dry-run', action='store_true', help='one step and one validation batch, nothing kept')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train as `argv` says."""
    args = make_parser().parse_args(argv)
    import vitdense.commands.train as training  # heavy: after the arguments are known to be right
    from vitdense.config.load import load_config
    from vitdense.reporting.console import start_logging

    if args.data is not None:
        start_logging(None, keep=True)  # so that the format of the folder is shown
    options = training.read_options(args.cfg_options, seed=args.seed, amp=args.amp)
    cfg = load_config(args.config, options, workers=args.workers, data=args.data)
    if args.dry_run:
        from vitdense.commands.dry_run import dry_run

        dry_run(cfg, weights=args.weights, add_head=args.add_head, device=args.device, compiled=args.compile)
        return
    training.train(
        cfg,
        work_dir=args.work_dir,
        resume=args.resume,
        weights=args.weights,
        add_head=args.add_head,
        device=args.device,
        compiled=args.compile,
        skip_bad_eval=args.skip_bad_eval,
    )


if __name__ == '__main__':
    run(main)
