"""Benchmark of a model: parameters, FLOPs, the time of every stage, throughput and memory, over image sizes."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vitdense.checkpoints.model_folder import without_pretrained
from vitdense.commands.memory import peak_bytes, reset_peak
from vitdense.config.classes import metainfo_of
from vitdense.inference.predictor import Predictor
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.reporting.console import console, print_table
from vitdense.storage.atomic import write_json
from vitdense.timing import Stopwatch
from vitdense.train.compile import compile_network, explained
from vitdense.visualize.fonts import new_figure

logger = logging.getLogger('vitdense')

STAGES = ('load', 'preprocess', 'backbone', 'adapter', 'head', 'postprocess', 'draw')
PARTS = {'backbone': 'backbone', 'adapters': 'adapter', 'heads': 'head'}  # of a network, and the stage of each
Size = tuple[int, int]  # (H, W)


class BenchmarkRow(NamedTuple):
    """Cost of images of one size."""

    size: Size
    flops: int  # of the network for one image, two for each multiplication with an addition
    ms: dict[str, float]  # milliseconds of each stage for one image, the median over repetitions
    throughput: float  # images a second through preprocessing, network and postprocessing
    peak: int  # bytes: of the process, or of what torch reserved on a GPU


class BenchmarkReport(NamedTuple):
    """Parameters of a model and its cost for each image size."""

    device: str
    batch: int
    parameters: dict[str, int]  # by part of the network, and in total
    rows: list[BenchmarkRow]


def benchmark(
    model: DenseModel,
    sizes: Sequence[Size],
    *,
    device: str | None = None,
    amp: str = 'off',
    compiled: bool = False,
    batch: int = 1,
    repeat: int = 5,
) -> BenchmarkReport:
    """Measure `model` on images of `sizes` (H, W), which pass the network whole, without a tiler.

    JPEG files are read, normalised, predicted in batches of `batch`, resized to their own size and drawn, `repeat`
    times after two more to warm up. The time of a network other than `SharedNetwork`, or that is `compiled`, is one
    stage 'network'. Work between the parts of a network counts as 'adapter'.
    """
    if min(batch, repeat) < 1:
        raise ValueError(f'batch={batch} and repeat={repeat} are at least 1')
    model.tiler = None
    predictor = Predictor(model, device=device, amp=amp, batch_size=batch)
    flops = [count_flops(model.network, size) for size in sizes]
    if compiled:
        compile_network(model, predictor.device)
    with tempfile.TemporaryDirectory(prefix='vitdense-') as folder:
        rows = []
        for size, count in zip(sizes, flops, strict=True):
            paths = _images(Path(folder), size, batch)
            reset_peak(predictor.device)
            with explained():
                runs = [_run(predictor, paths, split=not compiled) for _ in range(repeat + 2)][2:]
            ms = {stage: 1000 * median(times[stage] for times in runs) for stage in runs[0]}
            predicting = sum(value for stage, value in ms.items() if stage not in ('load', 'draw'))
            rows.append(BenchmarkRow(size, count, ms, 1000 / predicting, peak_bytes(predictor.device)))
    name = torch.cuda.get_device_name(predictor.device) if predictor.device.type == 'cuda' else 'CPU'
    threads = '' if predictor.device.type == 'cuda' else f', {torch.get_num_threads()} threads'
    return BenchmarkReport(f'{name}{threads}', batch, count_parameters(model.network), rows)


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part of a network that has parts, and in `total`."""
    children = dict(network.named_children())
    parts = {stage: children[part] for part, stage in PARTS.items() if part in children}
    counts = {stage: sum(value.numel() for value in part.parameters()) for stage, part in parts.items()}
    return counts | {'total': sum(value.numel() for value in network.parameters())}


def count_flops(network: nn.Module, size: Size) -> int:
    """Return the floating-point operations of `network` for an image of `size` (H, W), padded to its divisor.

    Counted are products of matrices, convolutions and attention, two for each multiplication with an addition (torch's
    FlopCounterMode); norms, activations, and the sampling of deformable attention are not.
    """
    height, width = (-(-side // network.divisor) * network.divisor for side in size)
    device = next(network.parameters()).device
    imgs = torch.zeros(1, 3, height, width, device=device)
    # torch counts the attention of GPUs only
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: sdpa_flop_count(*args[:3])}
    training = network.training
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    counter = FlopCounterMode(display=False, custom_mapping=on_cpu)
    try:
        network.requires_grad_(False)  # the counter hooks gradients of parameters that a part returns unchanged
        with torch.no_grad(), counter:
            network.eval()(imgs)
    finally:
        network.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)
    return counter.get_total_flops()


def _images(folder: Path, size: Size, count: int) -> list[Path]:
    """Write `count` different JPEG images of `size` with the detail of photographs, and return their paths."""
    paths = [folder / f'{size[0]}x{size[1]}_{number}.jpg' for number in range(count)]
    for number, path in enumerate(paths):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (max(size[0] // 16, 1), max(size[1] // 16, 1), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)).astype(np.int16)
        noise = random.integers(-8, 9, smooth.shape, dtype=np.int16)
        Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def _run(predictor: Predictor, paths: Sequence[Path], *, split: bool) -> dict[str, float]:
    """Return the seconds of each stage for one image."""
    network = predictor.model.network
    children = dict(network.named_children()) if split else {}
    parts = {stage: children[part] for part, stage in PARTS.items() if part in children}
    watch = Stopwatch(predictor._now)
    modules = {
        stage: list(part.values()) if isinstance(part, nn.ModuleDict) else [part] for stage, part in parts.items()
    }
    with watch.watching([(stage, module) for stage in modules for module in modules[stage]]):
        results = predictor(list(paths))
    times = {stage: sum(result.times[stage] for result in results) / len(paths) for stage in results[0].times}
    start = time.perf_counter()
    for result in results:
        result.draw()
    times['draw'] = (time.perf_counter() - start) / len(paths)
    if len(parts) == len(PARTS):
        inside = {stage: watch.seconds[stage] / len(paths) for stage in parts}
        inside['adapter'] = max(times.pop('network') - inside['backbone'] - inside['head'], inside['adapter'])
        times |= inside
    order = [*STAGES[:2], 'network', *STAGES[2:]]
    return {stage: times[stage] for stage in order if stage in times}


def model_of(cfg: Any, *, num_classes: int | None = None) -> DenseModel:
    """Return the model of a config (as `load_config` gives it) with random weights.

    Classes are those of the config's data, whose files may be absent where the config names them; else
    `num_classes` of them. Raises ConfigError where the number is not known.
    """
    recipe = without_pretrained(cfg.model)
    return build(recipe, classes=metainfo_of(cfg, num_classes=num_classes)['classes'])


def show(report: BenchmarkReport) -> None:
    """Print the report as tables."""
    rows = [(part, f'{count / 1e6:,.2f} M') for part, count in report.parameters.items()]
    print_table(f'parameters; on {report.device}, batches of {report.batch}', ('part', 'number'), rows)
    stages = list(report.rows[0].ms)
    header = ('W x H', 'GFLOPs', *(f'{stage} ms' for stage in stages), 'images/s', 'peak GiB')
    cells = [
        (
            f'{row.size[1]} x {row.size[0]}',
            f'{row.flops / 1e9:,.1f}',
            *(f'{row.ms[stage]:,.1f}' for stage in stages),
            f'{row.throughput:,.2f}',
            f'{row.peak / 2**30:.2f}',
        )
        for row in report.rows
    ]
    print_table('an image', header, cells)


def save(report: BenchmarkReport, folder: Path) -> None:
    """Write `benchmark.json` and `benchmark.png` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = report._asdict() | {'rows': [row._asdict() | {'size': list(row.size)} for row in report.rows]}
    write_json(folder / 'benchmark.json', content)
    plot(report, folder / 'benchmark.png')
    console().print(f'written: {folder}/benchmark.json, {folder}/benchmark.png')


def plot(report: BenchmarkReport, path: Path) -> None:
    """Draw the time of each stage, the throughput and the memory over the number of pixels."""
    rows = sorted(report.rows, key=lambda row: row.size[0] * row.size[1])
    pixels = [row.size[0] * row.size[1] / 1e6 for row in rows]
    figure = new_figure(13, 4)
    times, throughput, memory = figure.subplots(1, 3)
    for stage in rows[0].ms:
        times.plot(pixels, [row.ms[stage] for row in rows], marker='o', label=stage)
    times.legend(fontsize='small')
    throughput.plot(pixels, [row.throughput for row in rows], marker='o')
    memory.plot(pixels, [row.peak / 2**30 for row in rows], marker='o')
    for axes, label in ((times, 'ms an image'), (throughput, 'images a second'), (memory, 'peak memory, GiB')):
        axes.set(xlabel='megapixels', ylabel=label, xscale='log', yscale='log' if axes is not memory else 'linear')
        axes.grid(alpha=0.3)
    figure.suptitle(f'{report.device}, batches of {report.batch}')
    figure.savefig(path, dpi=120)
