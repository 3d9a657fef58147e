"""Class and box heads; boxes are refined from reference boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.heads.detr.attention import MLP

ApplyDeltas = Callable[[Tensor, Tensor], Tensor]  # (references, box_deltas) -> boxes cxcywh
PRIOR = 0.01  # probability of every class before training (focal loss, Lin et al. 2017, section 3.3)


class BoxPredictor(MLP):
    """Three layers that predict box deltas (..., 4), which are zero before training with `zero`.

    They run in float32 also under autocast: the 8 significant bits of bfloat16 are too few for boxes.
    """

    def __init__(self, channels: int, *, zero: bool = True) -> None:
        super().__init__(channels, channels, 4, num_layers=3)
        if zero:
            nn.init.zeros_(self.linears[-1].weight)
            nn.init.zeros_(self.linears[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)  # else no context, which would be part of an exported graph
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            return super().forward(x.to(self.linears[0].weight.dtype)).float()


@dataclass(frozen=True, kw_only=True)
class BoxDecoding:
    """How decoder layers turn queries into boxes.

    With `anchors` every query is a box whose position is encoded anew for every decoder layer (DAB-DETR, Liu et al.
    2022, arXiv 2201.12329). With `refine` each layer predicts deltas from the box of the layer before, else all from
    the queries' references. `look_forward_twice` lets the loss of a layer reach the box predictor of the one before,
    and no earlier one (DINO, Zhang et al. 2022, section 3.5). Deltas are added to the logits of a box, or are
    `relative` to its size (LW-DETR). `shared_predictors`: all layers predict with the same weights (None: unless they
    refine). `final_norm` normalises queries before they predict.
    """

    anchors: bool = False
    refine: bool = True
    look_forward_twice: bool = False
    relative: bool = False
    shared_predictors: bool | None = None
    final_norm: bool = False

    def __post_init__(self) -> None:
        if self.look_forward_twice and not self.refine:
            raise ValueError('look_forward_twice=True needs refine=True')

    @property
    def apply_deltas(self) -> ApplyDeltas:
        """The function that makes boxes of references and deltas."""
        return add_relative_deltas if self.relative else add_logit_deltas


def class_predictor(channels: int, num_classes: int) -> nn.Linear:
    """Return a linear layer whose every class has the probability `PRIOR` (sigmoid) at the start."""
    predictor = nn.Linear(channels, num_classes)
    nn.init.constant_(predictor.bias, -math.log((1 - PRIOR) / PRIOR))
    return predictor


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Return the logit of `x`, for x nearer than 1e-5 to 0 or 1 as if it were so near."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


def add_logit_deltas(references: Tensor, box_deltas: Tensor) -> Tensor:
    """Return boxes (..., 4) cxcywh in (0, 1): `box_deltas` (..., 4) added to the logits of `references`.

    References are points (..., 2) or boxes (..., 4) (Deformable-DETR, Zhu et al. 2021, section 4.3 and appendix A.4).
    """
    logits = functional.pad(inverse_sigmoid(references), (0, 4 - references.shape[-1]))  # a point has no size yet
    return (logits + box_deltas).sigmoid()


def add_relative_deltas(references: Tensor, box_deltas: Tensor) -> Tensor:
    """Return boxes (..., 4) cxcywh: centres moved by deltas times the reference's size, sizes times their exponential.

    The reparametrisation of Plain-DETR and LW-DETR (Chen et al. 2024, section 3.2). `references` and `box_deltas` are
    (..., 4).
    """
    centers, sizes = references[..., :2], references[..., 2:]
    return torch.cat([box_deltas[..., :2] * sizes + centers, box_deltas[..., 2:].exp() * sizes], dim=-1)
