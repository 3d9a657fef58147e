"""One exported graph with all heads of a model against a graph of each head alone, in onnxruntime and OpenVINO.

    python benchmarks/graph_heads.py work_dirs/shapes/model [--rounds 11]

Times are processor time of one thread for a pass with one random image. Bar: all heads at most 1.1 times the slowest
head alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitdense.export.folder import export_model, read_exported

RUNTIMES = ('onnx', 'openvino')


def pass_of(model: Path, out: Path, runtime: str, heads: list[str] | None) -> Callable[[], object]:
    """Export some heads (None: all) and return what runs their graph once."""
    content = export_model(model, out, heads=heads, dynamic=(), runtime=runtime)
    network = read_exported(out)[0].network
    images = network.as_input(torch.randn(1, 3, *content['size']))
    return lambda: network.run(images)


def medians(passes: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, taken in turns after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, run in passes.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, help='a model folder with several heads')
    parser.add_argument('--rounds', type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for runtime in RUNTIMES:
            every = pass_of(args.model, Path(scratch, runtime), runtime, None)
            names = read_exported(Path(scratch, runtime))[0].network.names
            alone = {name: pass_of(args.model, Path(scratch, f'{runtime}-{name}'), runtime, [name]) for name in names}
            seconds = medians({'all heads': every, **alone}, args.rounds)
            slowest = max(names, key=seconds.get)
            times = ', '.join(f'{name} {1000 * value:.2f} ms' for name, value in seconds.items())
            print(f'{runtime}: {times}: {seconds["all heads"] / seconds[slowest]:.2f}x of {slowest}', flush=True)


if __name__ == '__main__':
    main()
