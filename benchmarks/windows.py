"""P12: a ViT-S on large images, most blocks within windows, against the same ViT with global attention.

    python benchmarks/windows.py [--rounds 7] [--sizes 1024 1536] [--size 16 | --split 4]

Prints how much faster 4 and 2 global blocks are at each size, in one process, in turn. `--exponent` instead times sizes
from 256 to 1536 and fits log(seconds) over log(pixels): 1 is a cost in proportion to the pixels, 2 its square.
One torch thread; seconds are processor time. Bars: >= 1.6x at 1024 and 1.9x at 1536 with 4 global blocks, >= 2x and
2.7x with 2; exponents <= 1.25 and <= 1.15.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from functools import partial

import torch
from paired import paired

from vitdense.backbones.vit import ViT
from vitdense.backbones.windows import WindowPartition

LAYERS = [(-1, True)]
SIDES = (256, 384, 512, 768, 1024, 1280, 1536)


def make(name: str, windows: WindowPartition | None) -> ViT:
    torch.manual_seed(0)
    return ViT(name, windows=windows, frozen=True)


def compare(arguments: argparse.Namespace) -> None:
    """Print the ratios to global attention, paired."""
    plain = make(arguments.network, None)
    for side in arguments.sizes:
        imgs = torch.randn(1, 3, side, side)
        for count in arguments.global_blocks:
            vit = make(arguments.network, windows_of(arguments, count))
            pair = (partial(network, imgs, layers=LAYERS) for network in (plain, vit))
            ratio = paired(*pair, arguments.rounds, clock=time.thread_time)
            print(f'{side} px, {count} global blocks: {ratio}', flush=True)


def fit(arguments: argparse.Namespace) -> None:
    """Print the exponents: sizes in turn, so that a machine that slows down slows all of them."""
    for count in (*arguments.global_blocks, None):
        vit = make(arguments.network, None if count is None else windows_of(arguments, count))
        seconds: dict[int, list[float]] = {side: [] for side in SIDES}
        images = {side: torch.randn(1, 3, side, side) for side in SIDES}
        vit(images[SIDES[0]], layers=LAYERS)
        for _ in range(arguments.rounds):
            for side, imgs in images.items():
                start = time.thread_time()
                vit(imgs, layers=LAYERS)
                seconds[side].append(time.thread_time() - start)
        best = {side: min(times) for side, times in seconds.items()}
        words = ', '.join(f'{side}: {time * 1e3:.0f} ms' for side, time in best.items())
        label = 'all blocks global' if count is None else f'{count} global blocks'
        print(f'{label}: exponent {slope(best):.3f} ({words})', flush=True)


def slope(seconds: dict[int, float]) -> float:
    """Return the exponent of the seconds in the pixels, by least squares of the logarithms."""
    points = [(2 * math.log(side), math.log(value)) for side, value in seconds.items()]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def windows_of(arguments: argparse.Namespace, count: int) -> WindowPartition:
    if arguments.split:
        return WindowPartition(split=arguments.split, global_blocks=count)
    return WindowPartition(size=arguments.size, global_blocks=count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--network', default='vit_small_patch16_224', help='name of a ViT of timm')
    parser.add_argument('--sizes', type=int, nargs='+', default=(1024, 1536), help='sides of the images')
    parser.add_argument('--size', type=int, default=16, help='side of a window in cells')
    parser.add_argument('--split', type=int, help='windows along each side instead')
    parser.add_argument('--global-blocks', type=int, nargs='+', default=(4, 2), help='how many blocks stay global')
    parser.add_argument('--exponent', action='store_true', help='fit the exponent of the cost instead')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fit(arguments) if arguments.exponent else compare(arguments)


if __name__ == '__main__':
    main()
