"""P1, P2 and G2: multi-scale deformable attention against transformers' grid_sample version.

    python benchmarks/deform_attn.py [--rounds 9] [--device cpu|cuda] [--positions near|anywhere] [--threads 1]

Eight heads of 32 channels and four points, on the pyramid of a 640 x 640 image (strides 8 to 64). Four shapes: 300
decoder queries; the full encoder, where every cell asks; ViT-Adapter's extractor (the cells of strides 8, 16 and 32
read the ViT's map) and injector (the ViT's cells read the three maps). Places lie near the asking cell, as in a trained
network (`near`), or all over the image (`anywhere`). Outputs and gradients are compared before anything is timed.
Bars on a CPU, one thread: forward >= 2.5x / 4x / 6x for 300 queries / encoder / extractor (P1), forward and backward
>= 1.4x for the worst of the four (P2). On a GPU: forward >= 3x, forward and backward >= 2x (G2).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from paired import paired
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from vitdense.ops.deform_attn.function import Grids, deform_attn, route_of

HEADS, CHANNELS, POINTS = 8, 32, 4
PYRAMID = [(80, 80), (40, 40), (20, 20), (10, 10)]
CASES = {  # the grids that are read, the grids whose cells ask (None: 300 queries), and the forward bar on a CPU
    '300 queries': (PYRAMID, None, 2.5),
    'encoder': (PYRAMID, PYRAMID, 4.0),
    'extractor': (PYRAMID[1:2], PYRAMID[:3], 6.0),
    'injector': (PYRAMID[:3], PYRAMID[1:2], None),
}
BACKWARD_BAR = 1.4
GPU_BARS = (3.0, 2.0)


class Work(NamedTuple):
    """The arguments of one call."""

    value: Tensor
    grids: Grids
    locations: Tensor
    weights: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.locations, self.weights


def work_of(grids: Grids, asking: Grids | None, *, positions: str, batch: int, device: str) -> Work:
    """Return random arguments; places lie within about five cells of the asking cell, or anywhere."""
    centres = torch.rand(300, 2) if asking is None else torch.cat([cell_centres(*grid) for grid in asking])
    shape = (batch, len(centres), HEADS, len(grids), POINTS)
    if positions == 'anywhere':
        locations = torch.rand(*shape, 2) * 1.1 - 0.05
    else:
        sizes = torch.tensor([(width, height) for height, width in grids])[:, None]
        locations = centres[:, None, None, None] + 2.5 * torch.randn(*shape, 2) / sizes
    value = torch.randn(batch, sum(height * width for height, width in grids), HEADS, CHANNELS)
    weights = torch.randn(*shape[:3], len(grids) * POINTS).softmax(-1).view(shape)
    leaves = (tensor.to(device).requires_grad_() for tensor in (value, locations, weights))
    value, locations, weights = leaves
    return Work(value, grids, locations, weights)


def cell_centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing='ij')
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def theirs(work: Work) -> Tensor:
    return PEER(work.value, None, work.grids, None, work.locations, work.weights, 64)


def ours(work: Work) -> Tensor:
    return deform_attn(*work)


PEER = MultiScaleDeformableAttention()


def forward(function: Callable[[Work], Tensor], work: Work) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            function(work)
        wait(work)

    return call


def forward_backward(function: Callable[[Work], Tensor], work: Work) -> Callable[[], None]:
    grad_output = torch.randn(*work.locations.shape[:2], HEADS * CHANNELS, device=work.value.device)

    def call() -> None:
        torch.autograd.grad(function(work), work.leaves, grad_output)
        wait(work)

    return call


def wait(work: Work) -> None:
    if work.value.device.type == 'cuda':
        torch.cuda.synchronize()


def refuse_different(work: Work) -> None:
    """Stop if the two do not compute the same, by more than the rounding of float32."""
    outputs = [function(work) for function in (theirs, ours)]
    grad_output = torch.randn_like(outputs[0])
    both = [[output, *torch.autograd.grad(output, work.leaves, grad_output)] for output in outputs]
    for name, their, own in zip(('output', 'value', 'locations', 'weights'), *both, strict=True):
        # a place on a cell centre up to rounding has two slopes: few locations may differ
        error = ((their - own).abs() > 1e-4 * their.abs().max()).double().mean().item()
        assert error < 1e-4, f'{name} differs in {error:.1e} of all numbers'


def verdict(median: float, bar: float | None) -> str:
    return '' if bar is None else f'   bar {bar}x: {"reached" if median >= bar else "MISSED"}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=9, help='paired rounds')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cpu or cuda')
    parser.add_argument('--positions', choices=('near', 'anywhere'), default='near', help='where queries look')
    parser.add_argument('--threads', type=int, default=1, help='torch threads on a CPU')
    parser.add_argument('--batch', type=int, help='images: 1 on a CPU, 4 on a GPU')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    on_gpu = arguments.device != 'cpu'
    batch = arguments.batch or (4 if on_gpu else 1)
    rows = []
    for name, (grids, asking, bar) in CASES.items():
        work = work_of(grids, asking, positions=arguments.positions, batch=batch, device=arguments.device)
        refuse_different(work)
        bars = GPU_BARS if on_gpu else (bar, None)
        calls = 20 if on_gpu else 5 if asking is None else 1
        for direction, make, goal in (('forward', forward, bars[0]), ('forward + backward', forward_backward, bars[1])):
            ratio = paired(make(theirs, work), make(ours, work), arguments.rounds, calls=calls, warmup=2)
            print(f'{name}, {direction} ({route_of(work.value)}): {ratio}{verdict(ratio.median, goal)}', flush=True)
            rows.append((name, direction, ratio))
    worst = min((row for row in rows if row[1] != 'forward'), key=lambda row: row[2].median)
    goal = GPU_BARS[1] if on_gpu else BACKWARD_BAR
    print(f'worst forward + backward, {worst[0]}: {worst[2].median:.2f}x{verdict(worst[2].median, goal)}')


if __name__ == '__main__':
    main()
