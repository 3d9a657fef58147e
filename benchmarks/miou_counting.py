"""P7: accumulation of the confusion matrix, against mmsegmentation's formula and torchmetrics.

    python benchmarks/miou_counting.py [--rounds 7]

Images of 512 x 683 (ADE20K) and 2048 x 1024 (Cityscapes) with 150 classes, 5 % ignored pixels, predictions right at
four pixels of five. mmsegmentation takes three `histc` of an image (intersection, prediction, targets); torchmetrics
keeps a confusion matrix by bincount. The counts are compared before anything is timed. One torch thread.
Bars: >= 15x mmsegmentation's formula, >= 8x torchmetrics.
"""

from __future__ import annotations

import argparse

import torch
from paired import paired
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from vitdense.metrics.miou import count_pairs
from vitdense.types import IGNORE

CLASSES = 150


def three_histograms(targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The areas of intersection, prediction and targets for each class, by histogram, as mmsegmentation counts them."""
    valid = targets != IGNORE
    targets, labels = targets[valid], labels[valid]
    channels = (labels[labels == targets], labels, targets)
    return tuple(torch.histc(pixels.float(), bins=CLASSES, min=0, max=CLASSES - 1) for pixels in channels)


def images(height: int, width: int) -> tuple[Tensor, Tensor]:
    coarse = torch.randint(0, CLASSES, (1, 1, height // 32 + 1, width // 32 + 1)).float()
    targets = torch.nn.functional.interpolate(coarse, (height, width)).byte()[0, 0]
    labels = torch.where(torch.rand(height, width) < 0.8, targets, torch.randint_like(targets, CLASSES))
    targets[torch.rand(height, width) < 0.05] = IGNORE
    return targets, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=7, help='paired rounds')
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for size in ((512, 683), (1024, 2048)):
        targets, labels = images(*size)
        metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=False)
        wide = targets.long()[None], labels.long()[None]  # the types that the peers are handed in their own pipelines
        counts = torch.from_numpy(count_pairs(targets, labels, CLASSES))
        areas = three_histograms(wide[0], wide[1])
        assert torch.equal(metric(wide[1], wide[0]), counts)
        assert all(
            torch.equal(area.long(), mine)
            for area, mine in zip(areas, (counts.diagonal(), counts.sum(0), counts.sum(1)), strict=True)
        )

        def ours(targets: Tensor = targets, labels: Tensor = labels) -> object:
            return count_pairs(targets, labels, CLASSES)

        def formula(wide: tuple[Tensor, Tensor] = wide) -> object:
            return three_histograms(*wide)

        def peer(wide: tuple[Tensor, Tensor] = wide, metric: MulticlassConfusionMatrix = metric) -> object:
            return metric.update(wide[1], wide[0])

        print(f'{size}: three histograms {paired(formula, ours, rounds, calls=3)}', flush=True)
        print(f'{size}: torchmetrics {paired(peer, ours, rounds, calls=3)}', flush=True)


if __name__ == '__main__':
    main()
