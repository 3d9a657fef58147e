"""Visualise a ViT: principal components of its features as colours, or attention maps.

    python tools/visualize_features.py photos/ --name vit_small_patch14_dinov2 --weights dinov2.safetensors
    python tools/visualize_features.py cat.jpg --model work_dirs/shapes/model --kind attention --layers 5 11

Components are those of all images of one call together, so a colour means the same in each. Attention is that of the
class token, or of the patch at --query.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdense.commands.parser import Parser, positive, run
from vitdense.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from vitdense.backbones.vit import ViT
    from vitdense.inference.inputs import Input


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog='visualize_features.py', description=__doc__)
    add = parser.add_argument
    add('inputs', nargs='+', metavar='IMAGE', help='image, folder, or "pattern"')
    parser.add_shared('--model', '--accept-licence', '--device', '--value-range', '--trust-checkpoint')
    add('--name', metavar='N', help="timm's name of a ViT, such as vit_small_patch14_dinov2")
    add('--weights', metavar='FILE', help='weights for --name (default: those that timm publishes)')
    add('--kind', choices=('pca', 'attention'), default='pca', help='what to show (default: %(default)s)')
    add('--layers', type=int, nargs='+', default=[-1], metavar='L', help='blocks from 0, or from the end (default: -1)')
    add(
        '--size',
        type=positive,
        metavar='S',
        help='short side of the images in the network, in pixels (default: 448, or as trained)',
    )
    add('--query', type=_pixel, metavar='X,Y', help='attention of the patch at this pixel, not of the class token')
    add('--out', default='work_dirs/features', metavar='D', help='folder for the images (default: %(default)s)')
    args = parser.parse_args(argv)
    if (args.model is None) == (args.name is None) or (args.weights is not None and args.name is None):
        parser.error('give the ViT either as --model DIR, or as --name N with --weights FILE')
    if args.query is not None and args.kind != 'attention':
        parser.error('--query is for --kind attention')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    from vitdense.device import read_device
    from vitdense.inference.feature_maps import FeatureImages
    from vitdense.inference.inputs import OutputNames, find_inputs
    from vitdense.inference.predictor import as_tensor
    from vitdense.reporting.console import console, start_logging
    from vitdense.storage.atomic import make_folder
    from vitdense.visualize.image_files import write_image

    start_logging(None)
    out = Path(args.out)
    inputs = images_only(find_inputs(args.inputs, outside=out))
    names = OutputNames(out, inputs)
    make_folder(out, writable=True)
    maker = FeatureImages(load_vit(args), size=args.size, device=read_device(args.device))
    if args.kind == 'pca':
        sheets = iter(
            maker.components([as_tensor(item.source, value_range=args.value_range) for item in inputs], args.layers)
        )
    else:
        sheets = (
            maker.attention(as_tensor(item.source, value_range=args.value_range), args.layers, query=args.query)
            for item in inputs
        )
    for item, sheet in zip(inputs, sheets, strict=True):
        console().print(str(write_image(sheet, names.name(item, '.png', tag=f'_{args.kind}'))))


def load_vit(args: argparse.Namespace) -> ViT:
    """Return the ViT that the arguments name. Raises CheckpointError, ConfigError."""
    from vitdense.backbones.vit import ViT

    if args.name is not None:
        return ViT(args.name, pretrained=args.weights or True)
    from vitdense.checkpoints.model_folder import read_model_folder
    from vitdense.commands.models import trained_model

    model, _ = read_model_folder(trained_model(args.model, accept_licence=args.accept_licence))
    vit = next((module for module in model.network.modules() if isinstance(module, ViT)), None)
    if vit is None:
        raise CheckpointError(
            'the model has no ViT',
            where=args.model,
            why=f'its network is a {type(model.network).__name__} without one',
            fix='give the folder of a model with a ViT backbone',
        )
    return vit


def images_only(inputs: Sequence[Input]) -> list[Input]:
    """Return the images among `inputs`. Raises ConfigError where there is none, or one is unusable."""
    for item in inputs:
        if item.error is not None:
            raise item.error
    images = [item for item in inputs if item.kind == 'image']
    if not images:
        raise ConfigError(
            f'{inputs[0].name} is no image',
            where='IMAGE',
            why='features are shown of images, not of videos and cameras',
            fix='give images, folders with images, or patterns in quotes ("photos/*.jpg")',
        )
    return images


def _pixel(text: str) -> tuple[int, int]:
    x, comma, y = text.partition(',')
    if not (comma and x.isdecimal() and y.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} is not X,Y: two whole numbers with a comma between them')
    return int(x), int(y)


if __name__ == '__main__':
    run(main)
