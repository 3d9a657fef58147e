"""How much the processes of a run exchange in a step, and what scaling that allows, for ViT-S to 7B.

    python benchmarks/communication.py [--gpus 64] [--tflops 400] [--tokens 3200]

Numbers of parameters are counted in timm's models, built without memory. Nothing is trained: the table follows from
formulas, with P parameters, N processes, and K = (N - 1) / N, the share that a ring or a tree sends.

* DDP sums gradients in float32: each process sends 2 K 4 P bytes in a step (a reduce-scatter and an all-gather).
* FSDP gathers the weights in the forward and again in the backward pass, 2 K 2 P bytes in bfloat16 (twice that in
  float32), and reduce-scatters float32 gradients: K 4 P bytes.
* A step computes 6 P floating-point operations for each token of a process, and 12 T C for each in attention over
  T tokens of C channels, times the depth; the GPU does `--tflops` of them in a second.
* Both exchange while they compute. The step takes at least the longer of the two, and at most their sum: the two
  numbers of an efficiency are the worst and the best case.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import timm
import torch

MODELS = {
    'ViT-S': 'vit_small_patch16_224',
    'ViT-B': 'vit_base_patch16_224',
    'ViT-L': 'vit_large_patch16_224',
    'ViT-g': 'vit_giant_patch14_dinov2',
    'ViT-7B': 'vit_7b_patch16_dinov3',
}
LINKS = {'900 GB/s NVLink': 450e9, '400 Gb/s InfiniBand': 50e9, '25 Gb/s Ethernet': 3.1e9}  # bytes a second, one way


class Size(NamedTuple):
    """What the cost of a ViT follows from."""

    parameters: int
    depth: int
    width: int


def size_of(name: str) -> Size:
    """Return the size of a model of timm, which is not allocated."""
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=0)
    return Size(sum(value.numel() for value in model.parameters()), len(model.blocks), model.embed_dim)


def ddp_bytes(size: Size, processes: int) -> float:
    """Return the bytes that a process sends in a step of DDP."""
    return 2 * (processes - 1) / processes * 4 * size.parameters


def fsdp_bytes(size: Size, processes: int, *, weight_bytes: int = 2) -> float:
    """Return the bytes that a process sends in a step of FSDP with gathered weights of `weight_bytes` a number."""
    return (processes - 1) / processes * (2 * weight_bytes + 4) * size.parameters


def state_bytes(size: Size, processes: int = 1) -> float:
    """Return the bytes of weights, gradients, two moments and an average, in float32, on each of `processes`."""
    return 5 * 4 * size.parameters / processes


def compute_seconds(size: Size, tokens: int, images: int, tflops: float, *, recomputed: bool = False) -> float:
    """Return the time of forward and backward pass on `images` of `tokens` each (`recomputed`: of two forward passes).

    A forward pass is a third of the operations.
    """
    each = 6 * size.parameters + 12 * size.depth * tokens * size.width
    return images * tokens * each * (4 / 3 if recomputed else 1) / (tflops * 1e12)


def efficiency(compute: float, exchange: float) -> tuple[float, float]:
    """Return the share of the time that is computed: without any overlap, and with a whole one."""
    return compute / (compute + exchange), compute / max(compute, exchange)


def rows(processes: int, tokens: int, images: int, tflops: float) -> list[list[str]]:
    """Return the cells of the table, one row for each model."""
    table = []
    for label, name in MODELS.items():
        size = size_of(name)
        seconds = compute_seconds(size, tokens, images, tflops)
        sent = fsdp_bytes(size, processes)
        shares = [efficiency(seconds, sent / rate) for rate in LINKS.values()]
        table.append(
            [
                label,
                f'{size.parameters / 1e6:,.0f} M',
                f'{state_bytes(size) / 1e9:.1f} GB',
                f'{state_bytes(size, processes) / 1e9:.2f} GB',
                f'{sent / 1e9:.2f} GB',
                f'{seconds * 1e3:.0f} ms',
                *(f'{worst:.0%} to {best:.0%}' for worst, best in shares),
            ]
        )
    return table


def markdown(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *table]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gpus', type=int, default=64)
    parser.add_argument(
        '--tokens', type=int, default=1600, help='of an image: (side / patch) squared, 1600 for 640 / 16'
    )
    parser.add_argument('--images', type=int, default=2, help='of a step on each GPU')
    parser.add_argument('--tflops', type=float, default=400, help='that a GPU reaches, in bfloat16')
    args = parser.parse_args()
    header = ['', 'parameters', 'state, DDP', f'state, FSDP on {args.gpus}', 'sent in a step', 'computed in', *LINKS]
    print(markdown(header, rows(args.gpus, args.tokens, args.images, args.tflops)))


if __name__ == '__main__':
    main()
