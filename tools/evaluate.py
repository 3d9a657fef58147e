"""Score saved predictions of any origin, without a model.

    python tools/evaluate.py coco instances_val2017.json results.json
    python tools/evaluate.py semantic annotations/validation predictions --num-classes 150 --reduce-zero-label

`coco` scores a COCO results file: pycocotools' twelve numbers, to the last digit, and the AP of every class.
`semantic` scores a folder of label maps (PNG with class numbers): mIoU, and the IoU of every class.
Both write metrics.json; its keys are those of tools/test.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.commands.parser import Parser, label_pair, positive, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='evaluate.py', description=__doc__)
    kinds = parser.add_subparsers(dest='kind', metavar='KIND', required=True, help='coco or semantic')
    coco = kinds.add_parser('coco', help='score a COCO results file')
    coco.add_argument('annotations', metavar='ANNOTATIONS.json', help='COCO annotations of the images')
    coco.add_argument('results', metavar='RESULTS.json', help='a list of image_id, category_id, bbox, score')
    coco.add_argument('--iou-type', choices=('bbox', 'segm'), default='bbox', help='compare boxes or masks')
    coco.add_argument(
        '--engine',
        choices=('pycocotools', 'fast', 'auto'),
        default='pycocotools',
        help='fast: the extra vitdense[fast], with the same numbers; auto: fast where it is installed',
    )
    coco.add_argument(
        '--max-detections',
        type=positive,
        default=100,
        metavar='N',
        help='predictions of an image and class that count, the best ones (%(default)s, as in COCO)',
    )
    coco.add_argument(
        '--ignore-unknown',
        action='store_true',
        help='leave out predictions of categories that are not in ANNOTATIONS.json, as pycocotools does',
    )
    semantic = kinds.add_parser('semantic', help='score a folder of label maps')
    semantic.add_argument('labels', metavar='LABEL_DIR', help='label maps: one class number for each pixel')
    semantic.add_argument('predictions', metavar='PREDICTION_DIR', help='predicted label maps of the same names')
    semantic.add_shared('--num-classes', required=True, help='classes are 0 ... K-1')
    semantic.add_shared('--reduce-zero-label')
    semantic.add_argument(
        '--ignore', type=int, default=255, metavar='V', help='label that does not count (%(default)s)'
    )
    semantic.add_argument(
        '--label-map',
        nargs='+',
        type=label_pair,
        metavar='N:K',
        help='number in the labels and the class it stands for, such as 0:0 255:1',
    )
    semantic.add_argument('--classes', metavar='C', help='names of the classes: a file, or ade20k, cityscapes, voc ...')
    for part in (coco, semantic):
        part.add_argument('--work-dir', default='work_dirs/evaluate', metavar='D', help='for scores (%(default)s)')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Score as `argv` says."""
    args = vars(make_parser().parse_args(argv))
    import vitdense.scoring.saved_predictions as evaluation  # heavy: after the arguments are known to be right

    if args.pop('kind') == 'coco':
        evaluation.evaluate_coco(args.pop('annotations'), args.pop('results'), **args)
    else:
        pairs = args.pop('label_map')
        args['label_map'] = None if pairs is None else dict(pairs)
        evaluation.evaluate_semantic(args.pop('labels'), args.pop('predictions'), **args)


if __name__ == '__main__':
    run(main)
