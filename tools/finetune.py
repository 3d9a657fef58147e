"""Fine-tune on a folder of labelled images, without a config.

    vitdense finetune data/yard
    vitdense finetune data/yard --time 30m --backbone-weights WEIGHTS.safetensors
    vitdense finetune data/yard --model work_dirs/trucks
    vitdense finetune data/yard --model rf-detr-small

FOLDER holds COCO, YOLO, PASCAL VOC or CSV labels, images and masks, or one folder of images for each class, with splits
called train, val and test. Task and hardware choose a preset of configs/presets; what it is changed by is printed, and
the config in the work directory trains the same again with train.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitdense.commands.parser import Parser, count, duration, run


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='finetune.py', description=__doc__)
    parser.add_argument('folder', metavar='FOLDER', help='the labelled images')
    parser.add_shared('--model', help='go on from this trained model or published name')
    parser.add_argument(
        '--task',
        choices=('det', 'sem', 'cls', 'inst'),
        help='boxes, label maps, classes or masks of objects (default: what the labels are for; inst: polygons)',
    )
    parser.add_argument(
        '--time', type=duration, metavar='T', help='how long it may take: 30m, 2h (default: as long as the preset)'
    )
    parser.add_argument(
        '--backbone-weights', metavar='FILE', help='pretrained weights of the ViT (default: fetched by timm)'
    )
    parser.add_argument('--ignore', type=count, metavar='V', help='label maps: a number that is no class')
    parser.add_argument('--work-dir', metavar='D', help='where results go (default: work_dirs/NAME_OF_FOLDER)')
    parser.add_argument('--seed', type=count, metavar='N', help='seed of everything random')
    parser.add_shared('--device', '--cfg-options', '--accept-licence', '--trust-checkpoint')
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune as `argv` says."""
    args = make_parser().parse_args(argv)
    from vitdense.data.formats.labelled_folder import read_folder

    read_folder(Path(args.folder))  # a folder without labels is named before what takes seconds to import
    from vitdense.commands.finetune import finetune

    finetune(
        args.folder,
        model=args.model,
        task=args.task,
        time=args.time,
        backbone_weights=args.backbone_weights,
        ignore=args.ignore,
        work_dir=args.work_dir,
        device=args.device,
        seed=args.seed,
        options=args.cfg_options or (),
        accept_licence=args.accept_licence,
    )


if __name__ == '__main__':
    run(main)
