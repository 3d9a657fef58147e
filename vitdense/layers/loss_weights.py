"""Weights of the task losses in their sum: fixed, or learned from uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from vitdense.arguments import check
from vitdense.errors import did_you_mean


class FixedWeights(nn.Module):
    """Multiply the loss of each task by a number from 0 on; the default is 1.

    Raises ConfigError for unknown tasks and negative weights.
    """

    def __init__(self, names: Sequence[str], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.weights = dict(weights or {})
        for name, weight in self.weights.items():
            why = f'weights are numbers from 0 on; the tasks are {", ".join(names)}{did_you_mean(name, names)}'
            fix = f'write loss_weights=dict({", ".join(f"{name}=1.0" for name in names)})'
            check(name in names and weight >= 0, f'model.loss_weights.{name}', weight, why, fix)

    def forward(self, losses: Mapping[str, Tensor], labelled: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted losses by task; `labelled` is unused."""
        return {name: loss * self.weights[name] if name in self.weights else loss for name, loss in losses.items()}

    def current(self) -> dict[str, Tensor]:
        """Return an empty dict: the weights are fixed by the config."""
        return {}


class UncertaintyWeights(nn.Module):
    """Learn the weight of each task from the uncertainty of its predictions.

    Kendall, Gal and Cipolla 2018 (https://arxiv.org/abs/1705.07115, equation 10): with s = log sigma^2 of each task,
    the sum is of exp(-s) L + s / 2. The paper has exp(-s) / 2 for regression; here regression and classification of a
    task are one loss, and the constant only shifts s. Every weight begins at 1. In a step in which no process has a
    label for a task its s has no gradient, as it would decrease without bound. Optimizer moments still change it.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.log_variances = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, losses: Mapping[str, Tensor], labelled: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted losses by task, each with its regularisation term s / 2.

        `labelled` is the share of the batch with labels of each task. With several processes it is a collective
        operation: every process calls it.
        """
        absent = {name: self.log_variances.new_tensor(float(name in losses)) for name in self.names}
        shares = torch.stack([labelled.get(name, absent[name]) for name in self.names])
        present = (shares.detach() > 0).float()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(present, distributed.ReduceOp.MAX)
        prices = self.log_variances.where(present > 0, self.log_variances.detach()) / 2
        rows = {name: row for row, name in enumerate(self.names)}
        return {
            name: (-self.log_variances[rows[name]]).exp() * loss + prices[rows[name]] for name, loss in losses.items()
        }

    def current(self) -> dict[str, Tensor]:
        """Return the weights by task, for the log."""
        return dict(zip(self.names, (-self.log_variances.detach()).exp(), strict=True))
