"""How a detector says what it found: a class for each query, and a box as a step from a reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.heads.detr.attention import MLP

BoxStep = Callable[[Tensor, Tensor], Tensor]  # (references, steps) -> boxes cxcywh
PRIOR = 0.01  # probability of every class before training (focal loss, Lin et al. 2017, section 3.3)


class BoxPredictor(MLP):
    """Three layers that predict a step (..., 4) from a reference to a box; `zero`: which is zero before training.

    They run in float32 also under autocast: eight bits of a box are not enough.
    """

    def __init__(self, channels: int, *, zero: bool = True) -> None:
        super().__init__(channels, channels, 4, num_layers=3)
        if zero:
            nn.init.zeros_(self.linears[-1].weight)
            nn.init.zeros_(self.linears[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)  # an exported graph has no context that it does not need
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            return super().forward(x.to(self.linears[0].weight.dtype)).float()


def class_predictor(channels: int, num_classes: int) -> nn.Linear:
    """Return a linear layer whose every class has the probability `PRIOR` (sigmoid) at the start."""
    predictor = nn.Linear(channels, num_classes)
    nn.init.constant_(predictor.bias, -math.log((1 - PRIOR) / PRIOR))
    return predictor


def inverse_sigmoid(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return the logit of `x`, for x nearer than `epsilon` to 0 or 1 as if it were so near."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=epsilon) / (1 - x).clamp(min=epsilon))


def step_in_logits(references: Tensor, steps: Tensor) -> Tensor:
    """Return boxes (..., 4) cxcywh in (0, 1): `steps` (..., 4) added to the logits of `references`.

    References are points (..., 2) or boxes (..., 4) (Deformable-DETR, Zhu et al. 2021, section 4.3 and appendix A.4).
    """
    logits = functional.pad(inverse_sigmoid(references), (0, 4 - references.shape[-1]))  # a point has no size yet
    return (logits + steps).sigmoid()


def step_in_sizes(references: Tensor, steps: Tensor) -> Tensor:
    """Return boxes (..., 4) cxcywh: centres moved by `steps` times the reference's size, sizes times their exponential.

    The reparametrisation of Plain-DETR and LW-DETR (Chen et al. 2024, section 3.2): steps of one meaning for boxes of
    all sizes. `references` are boxes (..., 4).
    """
    centers, sizes = references[..., :2], references[..., 2:]
    return torch.cat([steps[..., :2] * sizes + centers, steps[..., 2:].exp() * sizes], dim=-1)
