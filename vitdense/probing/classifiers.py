"""Classifiers of cached features: nearest neighbours, and one linear layer at several learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
BATCH = 256
HELD_OUT = 10  # every tenth image for training chooses the learning rate
SIMILARITIES = 2**25  # held in memory at a time


def knn_scores(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    num_classes: int,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> dict[int, Tensor]:
    """Return {k: (M, num_classes) scores in [0, 1] of `test`} by the votes of the k nearest of `train`.

    `train` (N, C) with `labels` (N,) int64 and `test` (M, C) are features; their cosine s weighs a vote by
    exp(s / TEMPERATURE) (Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.4; the protocol of DINO). Where
    there are fewer than k images, all vote.
    """
    train, test = functional.normalize(train.float(), dim=1), functional.normalize(test.float(), dim=1)
    rows = max(1, SIMILARITIES // len(train))
    scores: dict[int, list[Tensor]] = {k: [] for k in neighbours}
    for part in test.split(rows):
        near = (part @ train.T).topk(min(max(neighbours), len(train)), dim=1)  # (m, most), nearest first
        votes = ((near.values - near.values[:, :1]) / TEMPERATURE).exp()  # the same shares, and no overflow
        for k in neighbours:
            total = votes.new_zeros(len(part), num_classes)
            total.scatter_add_(1, labels[near.indices[:, :k]], votes[:, :k])
            scores[k].append(total / total.sum(1, keepdim=True))
    return {k: torch.cat(parts) for k, parts in scores.items()}


class LinearFit(NamedTuple):
    """Linear layers on standardised features, one for each learning rate."""

    weights: Tensor  # (R, C, K)
    biases: Tensor  # (R, K)
    mean: Tensor  # (C,) of the features trained on, and so is `scale`, one over their standard deviation
    scale: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return (R, M, K) for features (M, C)."""
        return (features.float() - self.mean) * self.scale @ self.weights + self.biases[:, None]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    rates: Sequence[float],
    steps: int,
    batch_size: int = BATCH,
    seed: int = 0,
) -> LinearFit:
    """Fit one linear layer for each of `rates` to features (N, C) with labels (N,), all on the same batches.

    Features are standardised by their mean and deviation, which a linear layer may do by itself: so the same rates
    suit all backbones (as the batch normalisation of MAE's probe, https://arxiv.org/abs/2111.06377, appendix A.1). SGD
    with momentum 0.9 and a cosine to zero, no weight decay, from zero weights; cross-entropy.
    """
    deviation, mean = torch.std_mean(features.float(), dim=0, correction=0)
    scale = 1 / deviation.clamp(min=1e-6)
    x, count = (features.float() - mean) * scale, len(features)
    rate = torch.tensor(rates, device=x.device)[:, None, None]
    weights = x.new_zeros(len(rates), x.shape[1] + 1, num_classes)  # the last row is the bias
    momentum = torch.zeros_like(weights)
    x = torch.cat([x, x.new_ones(count, 1)], dim=1)
    batch_size = min(batch_size, count)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    start = 0
    for step in range(steps):
        if start + batch_size > count:
            order, start = torch.randperm(count, generator=generator), 0
        rows = order[start : start + batch_size].to(x.device)
        start += batch_size
        inputs, targets = x[rows], functional.one_hot(labels[rows], num_classes)
        grad_logits = ((inputs @ weights).softmax(-1) - targets) / batch_size  # (R, B, K)
        momentum = 0.9 * momentum + inputs.T @ grad_logits
        weights = weights - rate * (0.5 + 0.5 * math.cos(math.pi * step / steps)) * momentum
    return LinearFit(weights[:, :-1], weights[:, -1], mean, scale)


def choose_rate(
    features: Tensor, labels: Tensor, num_classes: int, *, rates: Sequence[float], steps: int, seed: int = 0
) -> tuple[float, list[float]]:
    """Return the learning rate with the highest accuracy on every tenth image, held out of training, and the accuracy
    of each rate. Among equals the lowest loss decides.
    """
    held = torch.arange(len(labels), device=labels.device) % HELD_OUT == HELD_OUT - 1
    if not held.any() or held.all():
        return rates[0], [0.0] * len(rates)
    fit = fit_linear(features[~held], labels[~held], num_classes, rates=rates, steps=steps, seed=seed)
    logits = fit.logits(features[held])  # (R, M, K)
    accuracy = (logits.argmax(-1) == labels[held]).float().mean(1).tolist()
    losses = [float(functional.cross_entropy(row, labels[held])) for row in logits]
    best = min(range(len(rates)), key=lambda row: (-accuracy[row], losses[row]))
    return rates[best], accuracy
