"""Losses of object queries, as small parts that a task adds up.

A classification part is called with the outputs of all layers of a decoder: `logits (L, B, Q, K)` in float32, `labels
(L, B, Q)` int64 (the class of the object that a query is matched with, NO_OBJECT, or IGNORED), `ious (L, B, Q)` (of the
query's box and its object's, without gradient) and `num_boxes ()`, this rank's share of the objects of all ranks. It
gives one number for each layer, (L,). Its `form` says how logits become scores: 'sigmoid', where every class is a
yes-no question, or 'softmax' over the classes and a last column, no object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check_ranges
from vitdense.ops.boxes import generalized_iou, to_xyxy
from vitdense.tasks.losses import share_of_count
from vitdense.tasks.matching import IGNORED


@dataclass(frozen=True, kw_only=True)
class Focal:
    """Focal loss: down-weights easy examples; divided by the number of objects.

    `-alpha_t * (1 - p_t) ** gamma * log(p_t)`: Lin et al. 2017 (RetinaNet), equation 5; the loss of Deformable-DETR
    and DINO.
    """

    form: ClassVar[Literal['sigmoid', 'softmax']] = 'sigmoid'
    weight: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(self, ('alpha',), 0.0, 1.0)
        check_ranges(self, ('gamma',), 1.0)

    def __call__(self, logits: Tensor, labels: Tensor, ious: Tensor, num_boxes: Tensor) -> Tensor:
        no = (1 - self.alpha) * logits.sigmoid() ** self.gamma * functional.softplus(logits)
        chosen = _pick(logits, labels)
        yes = self.alpha * (1 - chosen.sigmoid()) ** self.gamma * functional.softplus(-chosen)
        return self.weight * _total(no, yes, labels) / num_boxes


@dataclass(frozen=True, kw_only=True)
class Varifocal:
    """Binary cross-entropy towards the IoU q of the box, divided by the number of objects.

    `q * -(q * log(p) + (1 - q) * log(1 - p))` for the object's class, `alpha * p ** gamma * -log(1 - p)` for all
    others, where the power has no gradient: Zhang et al. 2021 (VarifocalNet), equation 2, with the settings of RT-DETR.
    """

    form: ClassVar[Literal['sigmoid', 'softmax']] = 'sigmoid'
    weight: float = 1.0
    alpha: float = 0.75
    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(self, ('alpha', 'gamma'), 0)

    def __call__(self, logits: Tensor, labels: Tensor, ious: Tensor, num_boxes: Tensor) -> Tensor:
        no = self.alpha * logits.detach().sigmoid() ** self.gamma * functional.softplus(logits)
        yes = ious * _binary_cross_entropy(_pick(logits, labels), ious)
        return self.weight * _total(no, yes, labels) / num_boxes


@dataclass(frozen=True, kw_only=True)
class IouAware:
    """Binary cross-entropy towards a target made of the score and the IoU of the box, divided by the number of objects.

    The target of the object's class is `t = p ** alpha * q ** (1 - alpha)`, at least 0.01, from the score p and the
    IoU q of the box; all other classes cost `p ** gamma * -log(1 - p)`. Cai et al. 2023 (Align-DETR), equations 2 - 4,
    as LW-DETR and RF-DETR use it (`ia_bce`).
    """

    form: ClassVar[Literal['sigmoid', 'softmax']] = 'sigmoid'
    weight: float = 1.0
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(self, ('alpha',), 0.0, 1.0)
        check_ranges(self, ('gamma',), 1.0)

    def __call__(self, logits: Tensor, labels: Tensor, ious: Tensor, num_boxes: Tensor) -> Tensor:
        no = logits.sigmoid() ** self.gamma * functional.softplus(logits)
        chosen = _pick(logits, labels)
        deserved = chosen.detach().sigmoid() ** self.alpha * ious ** (1 - self.alpha)
        yes = _binary_cross_entropy(chosen, deserved.clamp(min=0.01))
        return self.weight * _total(no, yes, labels) / num_boxes


@dataclass(frozen=True, kw_only=True)
class SoftmaxCrossEntropy:
    """The negative log-likelihood of the class, or of the last column: no object (Carion et al. 2020, equation 2).

    Queries without object count `no_object_weight`, and the sum is divided by the sum of these weights.
    """

    form: ClassVar[Literal['sigmoid', 'softmax']] = 'softmax'
    weight: float = 1.0
    no_object_weight: float = 0.1

    def __post_init__(self) -> None:
        check_ranges(self, ('no_object_weight',), 0.0)

    def __call__(self, logits: Tensor, labels: Tensor, ious: Tensor, num_boxes: Tensor) -> Tensor:
        known = labels.where(labels >= 0, logits.shape[-1] - 1)
        nll = logits.logsumexp(-1) - _pick(logits, known)
        weights = torch.where(labels >= 0, 1.0, self.no_object_weight).where(labels != IGNORED, 0.0)
        count = share_of_count(weights.flatten(1).sum(1))
        return self.weight * (weights * nll).flatten(1).sum(1) / count


def box_losses(boxes_cxcywh: Tensor, wanted_cxcywh: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed L1 distance and the summed `1 - GIoU` of each layer, both (L,).

    `boxes_cxcywh` and `wanted_cxcywh` are (L, B, Q, 4), `positive` (L, B, Q) bool: other queries cost exactly nothing
    and get a gradient of 0, whatever their boxes are.
    """
    boxes_cxcywh = boxes_cxcywh.where(positive[..., None], wanted_cxcywh)
    distance = (boxes_cxcywh - wanted_cxcywh).abs().sum(-1)
    miss = (1 - generalized_iou(to_xyxy(boxes_cxcywh), to_xyxy(wanted_cxcywh))).where(positive, 0.0)
    return distance.flatten(1).sum(1), miss.flatten(1).sum(1)


def _pick(values: Tensor, labels: Tensor) -> Tensor:
    """Return (L, B, Q): of `values` (L, B, Q, K) that of each query's class; of class 0 where it has none."""
    return values.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)


def _binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return targets * functional.softplus(-logits) + (1 - targets) * functional.softplus(logits)


def _total(no: Tensor, yes: Tensor, labels: Tensor) -> Tensor:
    """Return (L,): the sum of `yes` (L, B, Q) for the classes of objects and of `no` (L, B, Q, K) for all others."""
    costs = no.sum(-1) + (yes - _pick(no, labels)).where(labels >= 0, 0.0)
    return costs.where(labels != IGNORED, 0.0).flatten(1).sum(1)
