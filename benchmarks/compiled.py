"""`--compile`: a network compiled with torch.compile, against itself as it is.

    python benchmarks/compiled.py [--rounds 7] [--size 512] [--amp]

A ViT-S/16 with SimplePyramid and UPerNet (150 classes, 256 channels), random weights, one image, one torch thread:
inference, and forward with backward of the mean square of the logits. Outputs and gradients of both are compared before
anything is timed. The first compiled call, which compiles, is timed separately. There is no bar: on a CPU most of the
time is spent in the matrix products, which are the same.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from paired import paired
from torch import Tensor

from vitdense.adapters.pyramid import SimplePyramid
from vitdense.backbones.vit import ViT
from vitdense.heads.upernet import UPerNetHead
from vitdense.networks.shared import SharedNetwork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--size', type=int, default=512, help='side of the square image in pixels')
    parser.add_argument('--amp', action='store_true', help='bf16 autocast')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    branch = dict(adapter=dict(type=SimplePyramid, channels=256), head=dict(type=UPerNetHead, channels=256))
    vit = ViT('vit_small_patch16_224', pretrained=False, frozen=False)
    plain = SharedNetwork(vit, {'sem': branch}, num_classes={'sem': 150}).eval()
    fast = copy.deepcopy(plain)
    fast.compile()
    imgs = torch.randn(1, 3, arguments.size, arguments.size)
    for words, work in (('inference', infer), ('forward and backward', train)):
        outputs, seconds = [], []
        for network in (plain, fast):
            start = time.perf_counter()
            outputs.append(work(network, imgs, arguments.amp))
            seconds.append(time.perf_counter() - start)
        error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*outputs, strict=True))
        print(f'{words}: first compiled call {seconds[1]:.0f} s; largest difference / largest value = {error:.1e}')
        assert error < (5e-2 if arguments.amp else 1e-3), 'the compiled network has other outputs'
        ratio = paired(
            lambda work=work: work(plain, imgs, arguments.amp),
            lambda work=work: work(fast, imgs, arguments.amp),
            arguments.rounds,
            clock=time.thread_time if work is infer else time.perf_counter,  # backward runs on a thread of its own
        )
        print(f'{words}, as it is -> compiled: {ratio}', flush=True)


def infer(network: Callable, imgs: Tensor, amp: bool) -> list[Tensor]:
    """Return the logits."""
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=amp):
        return [network(imgs)['sem'].logits.float()]


def train(network: SharedNetwork, imgs: Tensor, amp: bool) -> list[Tensor]:
    """Return the gradient of the first convolution, the deepest there is."""
    network.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        logits = network(imgs)['sem'].logits
    logits.float().square().mean().backward()
    return [next(network.backbone.parameters()).grad.clone()]


if __name__ == '__main__':
    main()
