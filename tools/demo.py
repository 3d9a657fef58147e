"""Run a trained model on images, folders, patterns, videos and cameras.

    python tools/demo.py photos/ street.mp4 --model work_dirs/shapes/model --out overlays
    python tools/demo.py photos/ --model rf-detr-nano
    python tools/demo.py 0 --config CONFIG --checkpoint best.pth --show
    python tools/demo.py aerial.tif --model work_dirs/shapes/model --tile 512

Every image or video gets an overlay with a legend under --out; results.json lists the predictions and times.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdense.commands.parser import Parser, positive, run, seconds
from vitdense.errors import ConfigError

if TYPE_CHECKING:
    from vitdense.inference.demo import Demo
    from vitdense.inference.predictor import Predictor

SHOWN = 40  # rows of the summary
TRACKER = 'bytetrack'  # unless another one is named


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, checked without opening any file."""
    parser = Parser(prog='demo.py', description=__doc__)
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help='image, folder, "pattern", video file, camera number (0), or stream address',
    )
    add_model_options(parser)
    add_output_options(parser.add_argument)
    add_video_options(parser.add_argument)
    args = parser.parse_args(argv)
    fault = fault_of(args)
    if fault:
        parser.error(fault)
    if args.count_line or args.count_area:
        args.track = args.track or TRACKER
    return args


def add_model_options(parser: Parser) -> None:
    """Add the options of the model and how it runs."""
    add = parser.add_argument
    parser.add_shared('--model', '--accept-licence', '--device', '--trust-checkpoint')
    add('--config', metavar='C', help='a config file, with --checkpoint')
    add('--checkpoint', metavar='W', help='a checkpoint that was trained with --config')
    add('--amp', default='auto', choices=('auto', 'bf16', 'fp16', 'off'), help='precision of the network')
    add('--batch', type=positive, default=1, metavar='N', help='images or frames that pass the network together')
    add('--tile', type=positive, metavar='SIZE', help='predict large images in windows of SIZE x SIZE pixels')
    add('--tile-objects', type=positive, metavar='N', help='keep the N best objects of each window (default: all)')
    add('--tta', action='store_true', help="use the model's test-time augmentation (scales and flips)")
    add('--max-pixels', type=positive, metavar='N', help='refuse larger images (default: 180,000,000)')
    parser.add_shared('--value-range')


def add_output_options(add: Callable[..., Any]) -> None:
    """Add the options of what is drawn and written."""
    add('--out', default='work_dirs/demo', metavar='D', help='folder for the outputs (default: %(default)s)')
    add('--alpha', type=_share, default=0.5, help='opacity of regions, 0 ... 1 (default: %(default)s)')
    add(
        '--min-score',
        type=_least_score,
        default='auto',
        metavar='S',
        help='leave out objects below (default: auto, the threshold of best F1 in validation of each class, or 0.3'
        ' where the model has none)',
    )
    add('--legend', action=argparse.BooleanOptionalAction, default=True, help='draw class names beside the image')
    add('--font', metavar='FILE', help='font for class names (default: one of the system that has their letters)')
    add('--labels', action='store_true', help='also write label maps as PNG (class numbers)')
    add('--coco', action='store_true', help='also write the objects of images as a COCO file, coco.json')
    add('--show', action='store_true', help='show the results in a window; q ends')
    add('--json', action='store_true', help='print a line of JSON for each image and frame')


def add_video_options(add: Callable[..., Any]) -> None:
    """Add the options of videos, cameras and streams."""
    write = 'write overlays of videos and cameras'
    add('--save-video', action=argparse.BooleanOptionalAction, default=True, help=write)
    formats = ('mp4', 'webm', 'avi')
    add('--video-format', default='mp4', choices=formats, help='webm plays in browsers and encodes slowly')
    add(
        '--encoder',
        default='auto',
        choices=('auto', 'opencv', 'pyav'),
        help='pyav writes H.264 and keeps the times of frames; auto: where it is installed',
    )
    add('--fps', type=float, metavar='F', help='frame rate of written videos (default: that of the source)')
    add('--max-frames', type=positive, metavar='N', help='stop a video or camera after N frames')
    add('--every', type=positive, default=1, metavar='N', help='of videos, every N-th frame')
    add('--start', type=seconds, default=0.0, metavar='T', help='of videos, from this time (90, 1:30 or 1:02:03)')
    add('--end', type=seconds, metavar='T', help='of videos, up to this time')
    kinds = (TRACKER, 'ocsort', 'sort')
    add(
        '--track',
        nargs='?',
        const=TRACKER,
        choices=kinds,
        help="follow objects of videos (needs: pip install 'vitdense[track]')",
    )
    add('--count-line', type=float, nargs=4, metavar=('X', 'Y', 'X', 'Y'), help='count objects across this line')
    add('--count-area', type=float, nargs='+', metavar='XY', help='count objects in the polygon of these corners')


def fault_of(args: argparse.Namespace) -> str:
    """Return what is wrong with arguments that exclude or need each other; '' where nothing is."""
    by_config = args.config is not None and args.checkpoint is not None
    if by_config == (args.model is not None) or (args.config is None) != (args.checkpoint is None):
        return 'give the model either as --model DIR, or as --config C --checkpoint W'
    if args.count_area is not None and (len(args.count_area) < 6 or len(args.count_area) % 2):
        return f'--count-area takes x and y of three corners or more, got {len(args.count_area)} numbers'
    if args.end is not None and args.end <= args.start:
        return f'--end {args.end:g} lies before --start {args.start:g}'
    if args.fps is not None and not 0 < args.fps <= 1000:
        return f'--fps is a frame rate above 0 and at most 1000, got {args.fps:g}'
    return ''


def main(argv: Sequence[str] | None = None) -> int:
    """Predict as `argv` says; return 0, or the exit code of the first input that was skipped."""
    args = parse(argv)
    if args.show:
        check_display()
    if not args.json:
        return predict(args, lambda row: None)
    lines = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what is printed for people
        return predict(args, lambda row: print(json.dumps(row), file=lines, flush=True))


def predict(args: argparse.Namespace, on_result: Callable[[dict[str, Any]], None]) -> int:
    """Run the model on all inputs, and write and print the results."""
    from vitdense.inference.demo import Demo, Options
    from vitdense.inference.inputs import OutputNames, find_inputs
    from vitdense.inference.tracking import Tracking
    from vitdense.reporting.console import progress, start_logging
    from vitdense.storage.atomic import make_folder
    from vitdense.video.reader import Selection
    from vitdense.visualize.fonts import VARIABLE, check_font

    start_logging(None)
    if args.font:
        check_font(args.font)
        os.environ[VARIABLE] = args.font
    out = Path(args.out)
    inputs = find_inputs(args.inputs, outside=out)
    make_folder(out, writable=True)
    options = Options(
        alpha=args.alpha,
        legend=args.legend,
        min_score=args.min_score,
        labels=args.labels,
        coco=args.coco,
        batch=args.batch,
        save_video=args.save_video,
        video_format=f'.{args.video_format}',
        encoder=args.encoder,
        fps=args.fps,
        max_frames=args.max_frames,
        tracking=Tracking(args.track, args.count_line, args.count_area) if args.track else None,
        selection=Selection(args.every, args.start, args.end),
        show=args.show,
    )
    predictor = load_predictor(args)
    log_precision(predictor, args.amp)
    demo = Demo(predictor, OutputNames(out, inputs), options, on_result=on_result)
    try:
        with progress('predict', len(inputs)) as on_progress:
            demo.run(inputs, on_progress=on_progress)
    finally:
        if demo.entries or demo.skipped:
            demo.save(out / 'results.json')
    report(demo, out)
    return demo.exit_code


def load_predictor(args: argparse.Namespace) -> Predictor:
    from vitdense.commands.models import trained_model
    from vitdense.inference.predictor import Predictor, load

    options: dict[str, Any] = {'device': args.device, 'amp': args.amp, 'batch_size': args.batch}
    options |= {'tile': args.tile, 'tile_objects': args.tile_objects}
    if args.max_pixels:
        options['max_pixels'] = args.max_pixels
    if args.value_range:
        options['value_range'] = tuple(args.value_range)
    if args.model is not None:
        predictor = load(trained_model(args.model, accept_licence=args.accept_licence), **options)
    else:
        predictor = Predictor.from_config(args.config, args.checkpoint, **options)
    if args.tta and predictor.model.tta is None:
        raise ConfigError(
            'the model has no test-time augmentation',
            where='--tta',
            why='model.tta of its config is None',
            fix='leave --tta out, or train with model.tta=dict(type=TestTimeAugmentation, scales=...)',
        )
    predictor.model.use_tta = args.tta
    return predictor


def log_precision(predictor: Predictor, amp: str) -> None:
    """Log the device, and the precision with the reason for it."""
    import logging

    import torch

    from vitdense.device import choose_precision
    from vitdense.inference.demo_records import precision_of

    words = precision_of(predictor)
    if words in ('float32', 'bfloat16') and amp == 'auto':
        words = choose_precision(amp, predictor.device).reason  # has been timed, and is not timed again
    logging.getLogger('vitdense').info('%s, %s, %d torch threads', predictor.device, words, torch.get_num_threads())


def check_display() -> None:
    """Raise ConfigError, before anything is loaded, where no window can be opened."""
    why = ''
    if sys.platform.startswith('linux') and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        why = 'this machine has no display: DISPLAY is not set'
    elif _installed('opencv-python-headless') and not _installed('opencv-python'):
        why = 'opencv-python-headless has no windows'
    if why:
        raise ConfigError(
            '--show needs a display', where='--show', why=why, fix='leave --show out; look at the files in --out'
        )


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def report(demo: Demo, out: Path) -> None:
    """Print the main classes of each input, the times, and the folder of the outputs."""
    from vitdense.reporting.console import console, print_table
    from vitdense.visualize.text import shorten

    rows = [
        (
            shorten(Path(entry['file']).name, 26) + (f' ({entry["read"]} frames)' if 'read' in entry else ''),
            f'{entry["size"][1]} x {entry["size"][0]}',
            main_classes(entry),
            f'{sum(entry["ms"].values()):.0f}',
        )
        for entry in demo.entries[:SHOWN]
    ]
    print_table('predictions', ('file', 'W x H', 'main classes', 'ms'), rows)
    if len(demo.entries) > SHOWN:
        console().print(f'... and {len(demo.entries) - SHOWN} more in results.json')
    total = sum(demo.stages.values()) or 1.0
    stages = [
        (stage, f'{1000 * seconds / max(1, demo.count):.1f}', f'{100 * seconds / total:.0f} %')
        for stage, seconds in demo.stages.items()
    ]
    what = ' or '.join(name for name, number in counted(demo).items() if number) or 'image'
    print_table(f'time of one {what} (load, draw and write run beside the network)', ('stage', 'ms', 'share'), stages)
    parts = [
        (part, f'{1000 * seconds / max(1, demo.count):.1f}', f'{100 * seconds / total:.0f} %')
        for part, seconds in demo.parts.items()
    ]
    if parts:
        print_table('the pass of the backbone, and each head with its task', ('part', 'ms', 'share'), parts)
    numbers = [f'{number} {name}{"s" * (number != 1)}' for name, number in counted(demo).items() if number]
    rate = demo.count / max(demo.seconds, 1e-9)
    words = f'{" and ".join(numbers) or "nothing"} in {demo.seconds:.1f} s ({rate:.1f} a second)'
    skipped = f', {len(demo.skipped)} skipped' if demo.skipped else ''
    console().print(f'{words}{skipped}; results in {out}/')
    for line in [*count_lines(demo), *threshold_lines(demo)]:
        console().print(line)


def counted(demo: Demo) -> dict[str, int]:
    """Return how many images, and how many frames of videos."""
    frames = sum(entry.get('read', 0) for entry in demo.entries)
    return {'image': demo.count - frames, 'frame': frames}


def count_lines(demo: Demo) -> list[str]:
    """Return for each video with tracked objects what has been counted."""
    lines = []
    for entry in demo.entries:
        if counts := entry.get('counts'):
            line = f'; across the line: {counts["in"]} in, {counts["out"]} out' if 'in' in counts else ''
            area = (
                f'; area: {counts["entered"]} entered, {counts["inside"]} inside at the end'
                if 'inside' in counts
                else ''
            )
            tracks = f'{counts["tracks"]} track{"s" * (counts["tracks"] != 1)}'
            lines.append(f'{Path(entry["file"]).name}: {tracks}{line}{area}')
    return lines


def threshold_lines(demo: Demo) -> list[str]:
    """Return a line with the score threshold of each head that detects objects."""
    from vitdense.visualize.score_thresholds import MIN_SCORE, thresholds_of

    lines = []
    for head in (demo.entries[0].get('frames') or demo.entries)[0].get('objects', {}) if demo.entries else ():
        thresholds = thresholds_of(demo.predictor.metainfo, head) if demo.options.min_score == 'auto' else None
        if thresholds is None:
            least = MIN_SCORE if demo.options.min_score == 'auto' else demo.options.min_score
            lines.append(f'{head}: objects with a score of at least {least:g} (--min-score)')
            continue
        names = demo.predictor.classes[head]
        words = ', '.join(f'{name} {least:.2f}' for name, least in list(zip(names, thresholds, strict=False))[:8])
        more = ', ...' if len(names) > 8 else ''
        lines.append(f'{head}: objects from the score of best F1 in validation on: {words}{more} (--min-score)')
    return lines


def main_classes(entry: dict[str, Any]) -> str:
    """Return the three main classes of each head in words, its name before them where there are several heads.

    Of a video it is their mean over its frames.
    """
    from vitdense.visualize.text import percent

    counted = (entry.get('frames') or [entry])[0].get('objects', {})  # heads whose numbers are objects, not shares
    parts = []
    for head, numbers in entry['heads'].items():
        main = list(numbers.items())[:3]
        words = [f'{value:.3g}' if head in counted else percent(value).replace(' %', '%') for _, value in main]
        part = ', '.join(f'{name} {word}' for (name, _), word in zip(main, words, strict=True)) or 'nothing'
        parts.append(f'{head}: {part}' if len(entry['heads']) > 1 else part)
    return '; '.join(parts)


def _least_score(text: str) -> float | str:
    return text if text == 'auto' else _share(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not in 0 ... 1')
    return value


if __name__ == '__main__':
    run(main)
