"""M1: a segmentation, a detector and a classifier on one ViT-S, against three models with a ViT-S each.

    python benchmarks/one_pass.py [--rounds 7] [--size 512]

The real-time detection preset (ViT-S with patches of 16 and 2 x 2 windows, projector, 300 queries, 3 decoder layers),
and a linear segmentation head and a linear class head on the same ViT. Random weights, float32, one image, one torch
thread, times of the processor. Before anything is timed the joint outputs are compared with those of the single models.
Bars: joint <= 1.25 x the slowest single model, and less than half of the three together.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping

import torch
from paired import Ratio, paired
from torch import Tensor
from vitdense.configs._base_ import real_time_detr

from vitdense.adapters.plain import PlainMaps
from vitdense.heads.classify import ClassHead
from vitdense.heads.linear import LinearHead
from vitdense.networks.shared import SharedNetwork

NUM_CLASSES = dict(det=80, sem=150, cls=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    parser.add_argument('--size', type=int, default=512, help='side of the square image in pixels')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    joint = three_heads()
    single = {name: alone(joint, name) for name in joint.names}
    imgs = torch.randn(1, 3, arguments.size, arguments.size)
    with torch.inference_mode():
        compare(joint, single, imgs)
        ratios = {name: versus([model], joint, imgs, arguments.rounds) for name, model in single.items()}
        for name, ratio in ratios.items():
            print(f'{name} alone -> joint: {ratio}', flush=True)
        slowest = min(1 / ratio.median for ratio in ratios.values())
        three = versus([*single.values()], joint, imgs, arguments.rounds)
    print(f'three models -> joint: {three}', flush=True)
    verdict('joint / slowest single model', slowest, 1.25)
    verdict('joint / three models', 1 / three.median, 0.5)


def three_heads() -> SharedNetwork:
    """Return the joint model."""
    recipe = copy.deepcopy(real_time_detr.model['network'])
    recipe.pop('type')
    recipe['backbone']['pretrained'] = False
    recipe['branches'] |= dict(
        sem=dict(adapter=dict(type=PlainMaps), head=dict(type=LinearHead)),
        cls=dict(adapter=dict(type=PlainMaps), head=dict(type=ClassHead, pool='both')),
    )
    return SharedNetwork(**recipe, num_classes=NUM_CLASSES).eval()


def alone(joint: SharedNetwork, name: str) -> SharedNetwork:
    """Return a model of its own with one head of the joint model and a copy of the ViT."""
    branch = dict(adapter=joint.adapters[name], head=joint.heads[name])
    return SharedNetwork(copy.deepcopy(joint.backbone), {name: copy.deepcopy(branch)}).eval()


def compare(joint: SharedNetwork, single: Mapping[str, SharedNetwork], imgs: Tensor) -> None:
    """Check that the joint model has the outputs of the single models, from one call of its ViT."""
    calls = []
    handle = joint.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    outputs = joint(imgs)
    handle.remove()
    assert len(calls) == 1, 'the ViT runs once'
    for name, model in single.items():
        ours, own = outputs[name][0], model(imgs)[name][0]
        error = ((ours - own).abs().max() / own.abs().max()).item()
        print(f'{name}: largest difference / largest value = {error:.1e}', flush=True)
        assert error < 1e-4, 'the joint model has other outputs'


def versus(models: list[SharedNetwork], joint: SharedNetwork, imgs: Tensor, rounds: int) -> Ratio:
    """Time the models one after another against the joint one."""
    return paired(lambda: [model(imgs) for model in models], lambda: joint(imgs), rounds, clock=time.thread_time)


def verdict(words: str, ratio: float, bar: float) -> None:
    print(f'{words}: {ratio:.2f}   bar {bar}: {"reached" if ratio <= bar else "MISSED"}', flush=True)


if __name__ == '__main__':
    main()
