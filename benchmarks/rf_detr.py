"""RF-DETR nano in the package of its authors and here: the same weights, the same image, in turn.

    pip install rfdetr
    python benchmarks/rf_detr.py --rounds 7

P16: seconds from the start of a process to its first prediction, weights in a local file. P17: a prediction of a 640 x
480 image (preprocessing, network, postprocessing), in float32 and as both packages come, and the network alone, of
processes that are warm; with --graph as an exported graph. Weights are random, of the scale of trained ones. Ratios are
medians over rounds; above 1 vitdense is faster.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from paired import paired
from PIL import Image

from tests.convert.test_rfdetr import CONFIG, SIDE, randomise
from vitdense.config.load import load_config
from vitdense.convert.import_weights import import_weights
from vitdense.inference.predictor import load

THEIRS = """
from rfdetr import RFDETRNano
model = RFDETRNano(pretrain_weights={weights!r}, device='cpu')
model.predict({image!r}, threshold=0.0)
"""
OURS = """
import vitdense
vitdense.load({folder!r}, device='cpu', amp='off')({image!r})
"""


def make(folder: Path) -> tuple[Path, Path, Path]:
    """Write a checkpoint of random weights as rfdetr has it, the model folder made of it, and an image."""
    from rfdetr.config import RFDETRNanoConfig
    from rfdetr.models.lwdetr import build_model_from_config

    torch.manual_seed(0)
    theirs = build_model_from_config(RFDETRNanoConfig(pretrain_weights=None, device='cpu'))
    randomise(theirs)
    weights, image, ours = folder / 'nano.pth', folder / 'image.png', folder / 'model'
    torch.save({'model': theirs.state_dict(), 'args': argparse.Namespace(class_names=[], resolution=SIDE)}, weights)
    small = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(image)
    import_weights('rf-detr', [weights], load_config(CONFIG), ours, accept_licence=True)
    return weights, image, ours


def start_up(weights: Path, image: Path, folder: Path, rounds: int) -> None:
    """Print P16."""

    def run(code: str) -> None:
        words = code.format(weights=str(weights), image=str(image), folder=str(folder))
        subprocess.run([sys.executable, '-c', words], check=True, capture_output=True, env=os.environ)

    ratio = paired(lambda: run(THEIRS), lambda: run(OURS), rounds)
    print(f"P16 process start to first prediction: {1 / ratio.median:.2f} of rfdetr's time; {ratio}")


def latency(weights: Path, image: Path, folder: Path, rounds: int) -> None:
    """Print P17."""
    from rfdetr import RFDETRNano

    theirs = RFDETRNano(pretrain_weights=str(weights), device='cpu')
    ours = load(folder, device='cpu', amp='off')
    array, timed = np.asarray(Image.open(image)), dict(calls=3, clock=clock())
    ratio = paired(lambda: theirs.predict(array, threshold=0.0), lambda: ours(array), rounds, **timed)
    print(f'P17 a prediction: {ratio}')
    free = load(folder, device='cpu')
    ratio = paired(lambda: theirs.predict(array, threshold=0.0), lambda: free(array), rounds, **timed)
    print(f'P17 a prediction, both as they come (here {free.model.amp or "float32"}): {ratio}')
    network, imgs = theirs.model.model.eval(), torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        ratio = paired(lambda: network(imgs), lambda: ours.model.network(imgs), rounds, **timed)
    print(f'P17 the network alone: {ratio}')


def clock() -> Callable[[], float]:
    """Return the processor time for one thread, which other programs do not add to, else the time of day."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def graph_latency(weights: Path, image: Path, folder: Path, rounds: int, runtime: str) -> None:
    """Print P17 for the exported graph: with OpenVINO in float32 and in bfloat16, with onnxruntime in float32."""
    from rfdetr import RFDETRNano

    from vitdense.export.folder import INFO, export_model
    from vitdense.storage.atomic import write_json

    graph = folder.parent / runtime
    content = export_model(folder, graph, dynamic=(), runtime=runtime)
    theirs = RFDETRNano(pretrain_weights=str(weights), device='cpu')
    network, imgs = theirs.model.model.eval(), torch.randn(1, 3, SIDE, SIDE)
    array = np.asarray(Image.open(image))
    for precision in ('float32', 'bfloat16')[: 2 if runtime == 'openvino' else 1]:
        write_json(graph / INFO, {**content, 'precision': precision})
        ours = load(graph, device='cpu', amp='off')
        timed = dict(calls=3, clock=clock())
        ratio = paired(lambda: theirs.predict(array, threshold=0.0), lambda: ours(array), rounds, **timed)  # noqa: B023
        print(f'P17 a prediction, {runtime} {precision}: {ratio}')
        with torch.inference_mode():
            ratio = paired(lambda: network(imgs), lambda: ours.model.network(imgs), rounds, **timed)  # noqa: B023
        print(f'P17 the network alone, {runtime} {precision}: {ratio}')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--graph', choices=('onnx', 'openvino'), help='the exported graph only')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ['OMP_NUM_THREADS'] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder))
        start = time.perf_counter()
        if args.graph:
            graph_latency(*paths, args.rounds, args.graph)
        else:
            latency(*paths, args.rounds)
            start_up(*paths, args.rounds)
    print(f'{args.rounds} rounds, {args.threads} threads, {time.perf_counter() - start:.0f} s')


if __name__ == '__main__':
    main()
