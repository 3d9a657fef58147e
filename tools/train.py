"""Train a model.

    python tools/train.py configs/quickstart/shapes.py

    python tools/train.py --model work_dirs/shapes_detection --data FOLDER
    python tools/train.py CONFIG --add-head NAME --weights work_dirs/shapes/model

The second form trains a trained model on the classes of FOLDER. The third adds the branch NAME of CONFIG to a trained
model, whose backbone and heads stay as they are.
A config is a Python program and runs when it is read. Options change it: --cfg-options K=V, for example
schedule.max_iters=2000 train_dataloader.batch_size=4; +K=V adds a key that is not there.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence

from vitdense.commands.parser import Parser, count, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='train.py', description=__doc__)
    parser.add_shared('config', nargs='?')
    parser.add_argument(
        '--model',
        metavar='MODEL',
        help='in place of CONFIG: train this model on --data: a model folder, the folder or a checkpoint of a run, a '
        'head file beside its backbone, or a name of `vitdense models`',
    )
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
    parser.add_argument(
        '--weights', metavar='PATH', help='begin with these weights of the whole model, or a published model'
    )
    parser.add_argument(
        '--add-head',
        metavar='NAME',
        help='train this branch of CONFIG alone, on the trained model of --weights (a model folder or checkpoint)',
    )
    parser.add_argument(
        '--keep-classes',
        action='store_true',
        help="keep the trained model's classes: its predictions are labels where the data has none (docs/weights.md)",
    )
    parser.add_argument(
        '--old-data',
        metavar='FOLDER',
        help='with --keep-classes: old classes are tested on this folder, before and after',
    )
    parser.add_argument('--seed', type=count, metavar='N', help='seed of everything random')
    parser.add_argument(
        '--parallel',
        choices=('ddp', 'fsdp'),
        help='with several processes (torchrun, srun): ddp, each holds the model (default), or fsdp, a shard of it '
        '(docs/distributed.md)',
    )
    parser.add_shared(
        '--device', '--amp', '--workers', '--compile', '--cfg-options', '--skip-bad-eval', '--accept-licence'
    )
    parser.add_shared('--trust-checkpoint', '--safe')
    parser.add_argument('--dry-run', action='store_true', help='one step and one validation batch, nothing kept')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train as `argv` says."""
    parser = make_parser()
    args = parser.parse_args(argv)
    fault = _fault(args)
    if fault:
        parser.error(fault)
    import vitdense.commands.train as training  # heavy: after the arguments are known to be right
    from vitdense.checkpoints.model_config import config_from_model
    from vitdense.commands.models import trained_model
    from vitdense.config.load import load_config
    from vitdense.reporting.console import start_logging
    from vitdense.reporting.next_commands import tool_command

    args.weights = trained_model(args.weights, accept_licence=args.accept_licence)
    args.model = trained_model(args.model, accept_licence=args.accept_licence)
    if args.data is not None:
        start_logging(None, keep=True)  # so that the format of the folder is shown
    options = training.read_options(args.cfg_options, seed=args.seed, amp=args.amp, parallel=args.parallel)
    weights = args.weights
    if args.model is None:
        cfg = load_config(args.config, options, workers=args.workers, data=args.data, safe=args.safe)
    else:
        cfg, weights = config_from_model(args.model, args.data, options=options, workers=args.workers)
        config = f'{args.work_dir or cfg.work_dir}/config.py'
        logging.getLogger('vitdense').info('the same again: %s', tool_command('train', config, '--weights', weights))
    if args.dry_run:
        from vitdense.commands.dry_run import dry_run

        arguments = dict(add_head=args.add_head, keep_classes=args.keep_classes)
        dry_run(cfg, weights=weights, **arguments, device=args.device, compiled=args.compile)
        return
    training.train(
        cfg,
        work_dir=args.work_dir,
        resume=args.resume,
        weights=weights,
        add_head=args.add_head,
        keep_classes=args.keep_classes,
        old_data=args.old_data,
        device=args.device,
        compiled=args.compile,
        skip_bad_eval=args.skip_bad_eval,
    )


def _fault(args: Namespace) -> str:
    """Return what is wrong with options that exclude or need each other; '' where nothing is."""
    if args.config is None and args.model is None:
        return 'neither CONFIG nor --model MODEL --data FOLDER is given'
    if args.model is None:
        return ''
    if args.config is not None:
        return (
            f'{args.config} and --model {args.model} both say what the model is: for the architecture of CONFIG give '
            f'CONFIG --weights {args.model}, for that of the model --model and --data alone'
        )
    if args.data is None:
        return f'--model {args.model} says what to train, and nothing on which images: add --data FOLDER'
    if args.weights is not None or args.add_head is not None or args.resume is not None:
        return (
            '--model brings the weights, and goes with none of --weights, --add-head and --resume: a run goes on by '
            'train.py WORK_DIR/config.py --resume'
        )
    return ''


if __name__ == '__main__':
    run(main)
