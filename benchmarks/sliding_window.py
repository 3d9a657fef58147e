"""P14: an image of 1024 x 1024 in windows of 512 every 341 pixels, against mmsegmentation's loop.

    python benchmarks/sliding_window.py [--rounds 7] [--network vit_small_patch16_224]

The peer pads the logits of every window to the whole image and adds whole images; ours adds windows in place. Both
call the same network (a ViT with a linear head of 150 classes) and give identical logits. `windows alone` is the time
of the network without any blending. One torch thread. Bar: >= 1.45x.
"""

from __future__ import annotations

import argparse

import torch
from paired import paired
from torch import Tensor
from torch.nn import functional

from vitdense.adapters.plain import PlainMaps
from vitdense.backbones.vit import ViT
from vitdense.heads.linear import LinearHead
from vitdense.networks.shared import SharedNetwork
from vitdense.test_time.sliding_window import Network, Tiler

SIDE, WINDOW, STRIDE, CLASSES = 1024, 512, 341, 150


def loop(network: Network, imgs: Tensor) -> Tensor:
    """The sliding window of mmsegmentation: every window padded to the image, and a map of counts."""
    height, width = imgs.shape[-2:]
    total = imgs.new_zeros(len(imgs), CLASSES, height, width)
    count = imgs.new_zeros(len(imgs), 1, height, width)
    for row in range(max(height - WINDOW + STRIDE - 1, 0) // STRIDE + 1):
        for column in range(max(width - WINDOW + STRIDE - 1, 0) // STRIDE + 1):
            bottom, right = min(row * STRIDE + WINDOW, height), min(column * STRIDE + WINDOW, width)
            top, left = max(bottom - WINDOW, 0), max(right - WINDOW, 0)
            window = imgs[:, :, top:bottom, left:right]
            logits = network(window, None)['sem'].logits
            logits = functional.interpolate(logits, window.shape[-2:], mode='bilinear', align_corners=False)
            total += functional.pad(logits, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--network', default='vit_small_patch16_224', help='name of a ViT of timm')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    branches = {'sem': {'adapter': dict(type=PlainMaps), 'head': dict(type=LinearHead)}}
    network = SharedNetwork(ViT(arguments.network), branches, num_classes={'sem': CLASSES}).eval()
    imgs = torch.randn(1, 3, SIDE, SIDE)
    tiler = Tiler(WINDOW, STRIDE, divisor=network.divisor)
    windows = torch.cat([imgs[..., :WINDOW, :WINDOW]] * len(tiler.windows((SIDE, SIDE)).corners))

    def alone() -> None:
        for window in windows.split(1):
            network(window, None)

    def peer() -> Tensor:
        return loop(network, imgs)

    def ours() -> Tensor:
        return tiler(network, imgs)['sem'].logits

    with torch.inference_mode():
        print(f'largest difference of logits: {(peer() - ours()).abs().max().item():.1e}', flush=True)
        print(f'loop of mmsegmentation -> Tiler: {paired(peer, ours, arguments.rounds)}', flush=True)
        print(f'loop of mmsegmentation -> windows alone: {paired(peer, alone, arguments.rounds)}')


if __name__ == '__main__':
    main()
