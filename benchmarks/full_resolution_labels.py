"""P6: labels at 2048 x 2048 from 150 x 128 x 128 logits, against interpolate + argmax.

    python benchmarks/full_resolution_labels.py [--rounds 7] [--logits FILE]

Three kinds of logits: `scene` as a trained network gives them (regions of one clear class with soft borders, the other
classes low), `smooth` random ones, and `noise`, the worst case. `--logits FILE` adds a tensor (K, h, w) of your own.
Extra memory is the growth of the peak resident size in a process of its own (Linux). One torch thread.
Bars: scene >= 12x, smooth >= 2x, extra memory <= 2 % of the peer's, 0 pixels changed except at equal logits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from paired import paired
from torch import Tensor
from torch.nn import functional

from vitdense.ops.upsample import full_resolution_labels

CLASSES, CELLS, SIDE = 150, 128, 2048


def scene() -> Tensor:
    """Sixty Voronoi regions, each of one class; the winner leads by about 12, the others vary by about 2."""
    seeds, classes = torch.rand(60, 2) * CELLS, torch.randint(0, CLASSES, (60,))
    cells = torch.cartesian_prod(torch.arange(float(CELLS)), torch.arange(float(CELLS)))
    regions = classes[torch.cdist(cells, seeds).argmin(1)].view(CELLS, CELLS)
    clear = functional.one_hot(regions, CLASSES).permute(2, 0, 1).float()
    soft = functional.avg_pool2d(clear, 3, 1, 1, count_include_pad=False)
    return 12 * soft + 2 * smooth(32)


def smooth(cells: int = 16) -> Tensor:
    coarse = torch.randn(1, CLASSES, cells, cells)
    return functional.interpolate(coarse, (CELLS, CELLS), mode='bicubic')[0].contiguous()


def noise() -> Tensor:
    return torch.randn(CLASSES, CELLS, CELLS)


KINDS = {'scene': scene, 'smooth': smooth, 'noise': noise}


def naive(logits: Tensor) -> Tensor:
    return functional.interpolate(logits[None], (SIDE, SIDE), mode='bilinear', align_corners=False).argmax(1)[0]


def ours(logits: Tensor) -> Tensor:
    return full_resolution_labels(logits, input_size=(SIDE, SIDE), crop=(SIDE, SIDE), out=(SIDE, SIDE))


def changed(logits: Tensor) -> tuple[int, float]:
    """Return the number of pixels with another label, and the largest gap between the two logits in question."""
    full = functional.interpolate(logits[None], (SIDE, SIDE), mode='bilinear', align_corners=False)[0]
    labels = ours(logits).long()
    gap = full.amax(0) - full.gather(0, labels[None])[0]
    wrong = labels != full.argmax(0)
    return int(wrong.sum()), float(gap[wrong].max() / full.abs().max()) if wrong.any() else 0.0


def extra_memory(way: str, kind: str) -> float:
    """Return by how many MB the peak of a fresh process grows."""
    command = [sys.executable, __file__, '--measure', way, kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(way: str, kind: str) -> None:
    logits = KINDS[kind]()
    {'naive': naive, 'ours': ours}[way](logits[:8])  # what the first call of a kernel costs is not ours to count
    before = resident('VmRSS')
    {'naive': naive, 'ours': ours}[way](logits)
    print(resident('VmHWM') - before)


def resident(kind: str) -> float:
    """Return MB of this process: VmRSS is what it holds now, VmHWM the most it ever held."""
    row = next(row for row in Path('/proc/self/status').read_text().splitlines() if row.startswith(kind))
    return int(row.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--logits', help='a tensor (K, h, w) of your own, saved by torch.save')
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.measure:
        return measure(*arguments.measure)
    cases = {kind: make() for kind, make in KINDS.items()}
    if arguments.logits:
        cases['yours'] = torch.load(arguments.logits, weights_only=True).float()
    for kind, logits in cases.items():
        number, gap = changed(logits)
        ratio = paired(lambda logits=logits: naive(logits), lambda logits=logits: ours(logits), arguments.rounds)
        print(f'{kind}: {ratio}; {number} pixels changed (largest relative gap {gap:.0e})', flush=True)
    for kind in KINDS:
        peer, own = extra_memory('naive', kind), extra_memory('ours', kind)
        print(f'{kind}: extra memory {peer:.0f} MB -> {own:.0f} MB ({own / peer:.1%})', flush=True)


if __name__ == '__main__':
    main()
