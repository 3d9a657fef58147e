"""P15: one AdamW step of a ViT with layer-wise rates, against one group for each parameter and AdamW as it comes.

    python benchmarks/optimizer_step.py [--rounds 15] [--calls 5] [--network vit_small_patch16_224]

One group for each parameter is what mmengine's default constructor makes as soon as parameters have rates of their own
(`paramwise_cfg`). Ours sorts them into one group for each pair of rate and weight decay, and takes the fused step. Both
begin with equal weights and gradients, and their weights are compared after ten steps, before anything is timed. One
torch thread. Bar: >= 3x.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence

import torch
from paired import paired
from torch import nn
from torch.optim import AdamW, Optimizer

from vitdense.backbones.vit import ViT
from vitdense.train.optim import Group, LayerDecay, build_optimizer

RECIPE = dict(type=AdamW, lr=1e-4, weight_decay=0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=15, help='paired rounds')
    parser.add_argument('--calls', type=int, default=5, help='steps of a round')
    parser.add_argument('--network', default='vit_small_patch16_224', help="timm's name of the ViT")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ours = ViT(arguments.network, pretrained=False, frozen=False)
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    merged = LayerDecay(decay=0.8).groups(ours)
    fast = build_optimizer(RECIPE, merged)
    slow = one_group_each(LayerDecay(decay=0.8).groups(theirs))
    print(f'{arguments.network}: {len(slow.param_groups)} groups -> {len(fast.param_groups)}')
    for _ in range(10):
        fast.step()
        slow.step()
    print(f'largest difference of weights after ten steps / ten full steps = {difference(ours, theirs):.1e}')
    ratio = paired(slow.step, fast.step, arguments.rounds, calls=arguments.calls, clock=time.thread_time)
    print(f'step: {ratio}   bar 3.0x: {"reached" if ratio.median >= 3 else "MISSED"}')


def one_group_each(groups: Sequence[Group]) -> Optimizer:
    """Return AdamW as torch makes it by default, with one group for each parameter of `groups`."""
    settings = [
        dict(params=[parameter], lr=RECIPE['lr'] * group.lr, weight_decay=RECIPE['weight_decay'] * group.decayed)
        for group in groups
        for parameter in group.parameters
    ]
    return AdamW(settings)


def difference(ours: nn.Module, theirs: nn.Module) -> float:
    """Return the largest difference of two weights, in units of ten full steps. Raises ValueError above 1e-3."""
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    largest = max(float((a - b).detach().abs().max()) for a, b in pairs) / (10 * RECIPE['lr'])
    if largest > 1e-3:
        raise ValueError(f'the two optimizers learn differently: {largest:.1e} of ten full steps')
    return largest


if __name__ == '__main__':
    main()
