"""Export a model as one graph with all heads of one backbone pass, and compare it with the model.

    python tools/export.py work_dirs/shapes/model --out exported --verify 4
    python tools/export.py work_dirs/shapes/model --out exported --verify photos --heads det,sem --format openvino

MODEL is a model folder. Writes model.onnx (opset 20, plain operators), for OpenVINO model.xml and model.bin, or for
torch.export model.pt2, beside export.json (inputs, outputs, verdict) and model.json. The graph takes normalised images
(B, 3, H, W): (RGB in [0, 1] - mean) / std, mean and std in export.json, and gives outputs; --inside puts preprocessing
and predictions into it. The size is that of the evaluation transforms where they give all images one size; otherwise
sizes are free. --verify runs both on images of a folder or on N drawn ones, prints the differences of outputs and
predictions and the time of each stage of both, and leaves with 5 where they are beyond the tolerance (docs/export.md).
--data tests both on labelled images, and leaves with 5 where a score differs by more than 0.1 points. `vitdense.load`,
demo.py and test.py take the folder.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vitdense.commands.parser import Parser, run
from vitdense.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from vitdense.commands.compare_scores import ScoredBoth
    from vitdense.export.verify import OutputDifference, Verdict

WORTH = 1.1  # times faster than float32
DIFFERENT = 5  # exit code of a graph whose outputs are not those of the model
FEW = 100  # predictions of a head, of which one is a percent or more
MAX_IMAGES = 32  # images of a folder that are compared
MAX_CALIBRATION = 300  # images of a folder that activations are measured on


def make_parser() -> Parser:
    """Return the parser of the tool's arguments."""
    parser = Parser(prog='export.py', description=__doc__)
    parser.add_argument('model', metavar='MODEL', help='a model folder, the folder of a run, or a published name')
    parser.add_shared('--accept-licence')
    parser.add_argument('--out', metavar='D', required=True, help='the folder to write')
    parser.add_argument(
        '--format',
        choices=('onnx', 'openvino', 'torch-export'),
        default='onnx',
        help='the program that runs the graph (default: onnx)',
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument('--half', action='store_true', help='weights in float16')
    precision.add_argument('--bf16', action='store_true', help='arithmetic in bfloat16, for OpenVINO')
    precision.add_argument('--int8', action='store_true', help='quantized after training, for OpenVINO')
    parser.add_argument('--calibrate', metavar='DATA|N', help='images of --int8, as --verify names them')
    parser.add_argument(
        '--inside', type=_inside, default=(), metavar='preprocessing,predictions', help='what else the graph does'
    )
    parser.add_argument('--heads', metavar='A,B', help='heads to export (default: all)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='size of the images of the graph')
    parser.add_argument(
        '--dynamic', type=_dynamic, metavar='batch,size', help='what may differ from call to call, or none'
    )
    parser.add_argument('--verify', metavar='DATA|N', help='a folder of images, or a number of drawn ones')
    parser.add_argument(
        '--data', metavar='FOLDER', help='labelled images, as --data of test.py: test the model and the graph on them'
    )
    parser.add_argument('--split', choices=('train', 'val', 'test'), help='of --data (default: test, else val)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export as `argv` says; return 0, or 5 when outputs differ."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.bf16 and args.format != 'openvino':
        parser.error('--bf16 needs --format openvino')
    if args.half and args.format == 'torch-export':
        parser.error('--half needs --format onnx or openvino')
    if args.int8 and (args.format != 'openvino' or not args.calibrate):
        parser.error('--int8 needs --format openvino and --calibrate DATA: images like those it is for')
    from pathlib import Path  # heavy from here on: after the arguments are known to be right

    from vitdense.commands.models import trained_model
    from vitdense.export.folder import export_model, quantize_folder, verify
    from vitdense.export.runtimes import check_installed
    from vitdense.reporting.console import console, start_logging

    start_logging(None)
    out = Path(args.out)
    heads = args.heads.split(',') if args.heads else None
    size = tuple(args.size) if args.size else None
    check_installed(args.format, int8=args.int8)
    shown = images_of(args.verify) if args.verify is not None else None
    calibration = images_of(args.calibrate, most=MAX_CALIBRATION) if args.int8 else None
    model = trained_model(args.model, accept_licence=args.accept_licence)
    precision = 'float16' if args.half else 'bfloat16' if args.bf16 else 'float32'
    options = dict(heads=heads, size=size, dynamic=args.dynamic, inside=args.inside)
    options |= dict(runtime=args.format, precision=precision)
    console().print(f'tracing {args.model}')
    content = export_model(model, out, **options)
    if calibration is not None:
        content = quantize_folder(out, calibration)
    free = f', free: {", ".join(content["dynamic"])}' if content['dynamic'] else ''
    console().print(f'{out}: {", ".join(content["heads"])} in one graph of {tuple(content["size"])}{free}')
    passed = True
    if shown is not None:
        console().print(f'running both on {len(shown)} images')
        verdict = verify(model, out, shown)
        show(verdict)
        passed = verdict.passed
    if args.data is not None:
        from vitdense.commands.compare_scores import compare_scores

        scores = compare_scores(model, out, args.data, split=args.split)
        show_scores(scores)
        passed &= all(score.passed for score in scores)
    if args.int8:
        show_worth(content['int8_seconds'], passed, judged=bool(args.verify or args.data))
    return 0 if passed else DIFFERENT


def images_of(words: str, most: int = MAX_IMAGES) -> list[Tensor]:
    """Return at most `most` readable images of the folder `words`, or of synthetic scenes where it is a number."""
    from vitdense.data.files.images import read_image
    from vitdense.data.files.listing import find_files
    from vitdense.data.shapes import ShapesScenes

    if words.isdecimal() and int(words):
        scenes = ShapesScenes(num_images=int(words), size=256, split='val')
        return [scenes[row].img for row in range(len(scenes))]
    from pathlib import Path

    images, reasons = [], []
    for name in find_files(Path(words)).files:
        if len(images) == most:
            break
        try:
            images.append(read_image(Path(words) / name))
        except DataError as error:
            reasons.append(error.message)
            logging.getLogger('vitdense').warning('skipped %s', error.message)
    if not images:
        raise DataError(
            f'no images in {words}',
            where=words,
            why='; '.join(reasons[:5]) or 'it holds no file of an image format',
            fix='give a folder of images, or a number: so many scenes are drawn',
        )
    return images


def show(verdict: Verdict) -> None:
    """Print the verdict."""
    from vitdense.reporting.console import console, print_table

    rows = [
        (each.name, f'{each.largest:.2e}', f'{each.mean:.2e}', f'{each.scale:.3g}', _cell(each))
        for each in verdict.outputs
    ]
    if rows:
        print_table(f'{verdict.images} images', ('output', 'max difference', 'mean', 'magnitude', 'equal'), rows)
    for head in verdict.heads:
        needed = '' if head.passed else f', and {100 * head.least:g} % have to be'
        needed += ' (few: verify with more images)' if needed and head.total < FEW else ''
        console().print(
            f'{head.head}: {head.same:,} of {head.total:,} {head.what} equal ({100 * head.share:.2f} %){needed}'
        )
    print_table('one image', ('stage', 'model', 'graph', 'times faster'), list(_latency(verdict)))
    beyond = 'NOT passed: beyond the tolerance for this precision (docs/export.md, "The verdict")'
    console().print('passed' if verdict.passed else beyond, style='bold', markup=False)


def _latency(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    """Yield a row for each stage and for all of them: milliseconds of the model and of the graph."""
    stages = {stage: (seconds, verdict.seconds['graph'][stage]) for stage, seconds in verdict.seconds['torch'].items()}
    stages['all'] = tuple(map(sum, zip(*stages.values(), strict=True)))
    for stage, (model, graph) in stages.items():
        yield stage, f'{1000 * model:.1f} ms', f'{1000 * graph:.1f} ms', f'{model / graph:.2f}' if graph > 1e-4 else '-'


def _cell(output: OutputDifference) -> str:
    return '-' if output.tolerance is None else 'yes' if output.passed else 'NO'


def show_worth(seconds: Mapping[str, float], passed: bool, *, judged: bool) -> None:
    """Print whether INT8 is worth what it costs: it must be faster, and the predictions must stay."""
    from vitdense.reporting.console import console

    ratio = seconds['float32'] / seconds['int8']
    faults = [text for bad, text in ((ratio < WORTH, 'no faster'), (not passed, 'predictions change')) if bad]
    worth = f'not worth it: {" and ".join(faults)}' if faults else 'worth it' if judged else 'not judged: give --verify'
    times = ' -> '.join(f'{1000 * seconds[name]:.1f} ms' for name in ('float32', 'int8'))
    console().print(f'INT8: {times} ({ratio:.2f} x), {worth}', style='bold')


def show_scores(scores: Sequence[ScoredBoth]) -> None:
    """Print the scores of the model and of the graph."""
    from vitdense.reporting.console import print_table

    def cell(value: float | None) -> str:
        return 'n/a' if value is None else f'{100 * value:.2f}'

    rows = [(each.name, cell(each.model), cell(each.graph), 'yes' if each.passed else 'NO') for each in scores]
    print_table('scores', ('metric', 'model', 'graph', 'within 0.1'), rows)


def _inside(text: str) -> tuple[str, ...]:
    words = tuple(text.split(','))
    if set(words) - {'preprocessing', 'predictions'}:
        raise argparse.ArgumentTypeError(f'{text!r} is not preprocessing, predictions or both with a comma')
    return words


def _dynamic(text: str) -> tuple[str, ...]:
    words = () if text == 'none' else tuple(text.split(','))
    if set(words) - {'batch', 'size'}:
        raise argparse.ArgumentTypeError(f'{text!r} is not batch, size, batch,size or none')
    return words


if __name__ == '__main__':
    run(main)
