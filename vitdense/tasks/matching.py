"""Bipartite matching of queries and objects (DETR): targets of a batch as one list, and the cheapest assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check_choice, check_ranges
from vitdense.errors import NumericsError
from vitdense.ops.boxes import generalized_iou, scales_of, to_cxcywh, to_xyxy
from vitdense.types import QueryOutputs, Target

NO_OBJECT = -1  # the row of a query that is assigned to no object
IGNORED = -2  # a query that takes no part in any loss

_LARGEST = 1e6  # costs are cut to +- this, so that sums of them stay exact
_WORST = 2e6  # the cost of what is not finite: taken only when nothing else is left
_AT_A_TIME = (2**18, 2**24)  # costs computed together, on a CPU (whose cache holds them) and on other devices
_CROWD = float('inf')  # the cost of an object that must not be assigned to anybody


class ObjectTargets(NamedTuple):
    """The objects of all images of a batch, one after the other."""

    labels: Tensor  # (M,) int64
    boxes: Tensor  # (M, 4) float32 cxcywh in [0, 1] of each object's image, as in `QueryOutputs`
    images: Tensor  # (M,) int64 row of the image
    crowd: Tensor  # (M,) bool, True: a crowd, which no query is assigned to
    counts: tuple[int, ...]  # number of objects of each image, known without asking the device

    @classmethod
    def of(cls, targets: Sequence[Target], sizes: Tensor) -> ObjectTargets:
        """Return the objects of images whose boxes measure regions of `sizes` (B, 2) pixels (H, W).

        An unlabelled image has no objects.
        """
        device = sizes.device
        labelled = [target for target in targets if is_labelled(target)]
        counts = tuple(len(target.labels) if is_labelled(target) else 0 for target in targets)
        labels = torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *(each.labels for each in labelled)])
        boxes = torch.cat([torch.zeros(0, 4, device=device), *(each.boxes.float() for each in labelled)])
        crowd = torch.cat([labels[:0].bool(), *(crowds_of(each) for each in labelled)])
        images = torch.arange(len(counts), device=device)
        images = images.repeat_interleave(
            torch.tensor(counts, dtype=torch.int64, device=device), output_size=sum(counts)
        )
        return cls(labels, to_cxcywh(boxes / scales_of(sizes)[images]), images, crowd, counts)

    @property
    def starts(self) -> Tensor:
        """(B,) int64 row of the first object of each image."""
        return torch.tensor((0, *accumulate(self.counts)), device=self.labels.device)[:-1]


class LayerPredictions(NamedTuple):
    """Predictions of the layers of one decoder, stacked, in float32; the last layer is the final one."""

    logits: Tensor  # (L, B, Q, K)
    boxes: Tensor  # (L, B, Q, 4) cxcywh in [0, 1]
    groups: int = 1  # Q is made of this many independent groups
    name: str = 'queries'  # of these predictions, for messages

    @classmethod
    def of(cls, outputs: QueryOutputs, name: str = 'queries') -> LayerPredictions:
        """Return the predictions of `outputs.aux` and of `outputs` itself, in this order."""
        layers = (*outputs.aux, outputs)
        logits = torch.stack([layer.class_logits for layer in layers]).float()
        boxes = torch.stack([layer.boxes for layer in layers]).float()
        return cls(logits, boxes, outputs.groups, name)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Predictions by name, for messages."""
        return {'class logits': self.logits, 'boxes': self.boxes}


@dataclass(frozen=True, kw_only=True)
class HungarianMatcher:
    """The assignment of objects to queries with the smallest sum of costs (Carion et al. 2020, section 3.1).

    A cost is `class_weight` times that of the class, `l1_weight` times the L1 distance of the boxes (cxcywh in [0, 1]),
    and `giou_weight` times minus their generalised IoU. The class costs, in the 'softmax' form, minus the probability
    of the object's class (DETR); in the 'sigmoid' form the focal loss of the class with target 1 minus that with target
    0, with `alpha` and `gamma` (Deformable-DETR). A query is assigned to one object at most, and none to crowds.

    Costs are computed for the objects of each image only, on the device; those of all layers come to the CPU in
    one transfer. What is not finite costs more than all that is. Raises NumericsError when nothing in a layer is
    finite, and says what diverged.
    """

    class_weight: float = 2.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    form: Literal['sigmoid', 'softmax'] = 'sigmoid'
    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        check_choice('HungarianMatcher.form', self.form, ('sigmoid', 'softmax'))
        check_ranges(self, ('class_weight', 'l1_weight', 'giou_weight', 'gamma'), 0)
        check_ranges(self, ('alpha',), 0, 1)

    @torch.no_grad()
    def __call__(
        self, predictions: Sequence[LayerPredictions], targets: ObjectTargets, copies: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return for each of `predictions` (L, B, Q) int64: the row of `targets` that a query is assigned to, or
        NO_OBJECT.

        `copies` is, for each of `predictions`, how many queries of a group are assigned to one object (default: one;
        H-DETR, Jia et al. 2023, section 3, repeats the objects). Where the queries do not suffice, objects stay
        without.
        """
        blocks = [finite_costs(self.costs(each, targets), targets.crowd) for each in predictions]
        table = torch.cat([block.flatten() for block in blocks]).cpu().numpy()  # the one transfer
        ends = list(accumulate(block.numel() for block in blocks))
        assigned = []
        for each, end, block, repeat in zip(predictions, ends, blocks, copies or [1] * len(blocks), strict=True):
            costs = table[end - block.numel() : end].reshape(block.shape)
            assigned.append(assign(costs, each, targets.counts, repeat))
        rows = torch.from_numpy(np.concatenate([rows.ravel() for rows in assigned])).to(targets.labels.device)
        return [
            part.view(each.shape)
            for part, each in zip(rows.split([each.size for each in assigned]), assigned, strict=True)
        ]

    def costs(self, predictions: LayerPredictions, targets: ObjectTargets) -> Tensor:
        """Return (L, M, Q) float32: what it costs that a query of an object's own image is assigned to it."""
        logits = predictions.logits.transpose(
            2, 3
        )  # (L, B, Q, K) -> (L, B, K, Q): what is read has one row for each class
        boxes = predictions.boxes.movedim(-1, 0).contiguous()  # (4, L, B, Q)
        mass = predictions.logits.logsumexp(-1) if self.form == 'softmax' else None  # (L, B, Q)
        labels, count = class_agnostic_labels(targets.labels, predictions.logits), len(targets.labels)
        costs = boxes.new_empty(boxes.shape[1], count, boxes.shape[3])
        step = max(_AT_A_TIME[costs.device.type != 'cpu'] // max(costs[:, :1].numel(), 1), 1)
        for start in range(0, count, step):
            some = slice(start, start + step)
            images = targets.images[some]
            chosen = logits[:, images, labels[some]]  # (L, m, Q)
            total = self._class_costs(chosen, None if mass is None else mass[:, images]).mul_(self.class_weight)
            boxes_cxcywh = boxes[:, :, images].movedim(0, -1)  # (L, m, Q, 4)
            wanted_cxcywh = targets.boxes[some, None]  # (m, 1, 4)
            for mine, theirs in zip(boxes_cxcywh.unbind(-1), wanted_cxcywh.unbind(-1), strict=True):
                total += (mine - theirs).abs_().mul_(self.l1_weight)
            total -= generalized_iou(_corners(boxes_cxcywh), to_xyxy(wanted_cxcywh)).mul_(self.giou_weight)
            costs[:, some] = total
        return costs

    def _class_costs(self, chosen: Tensor, mass: Tensor | None) -> Tensor:
        """Return (L, m, Q) from the logits of the objects' classes, and the log of the sum of all in a softmax."""
        if mass is not None:
            return -(chosen - mass).exp()
        probs, nll = chosen.sigmoid(), functional.softplus(-chosen)  # nll: -log(p)
        yes = self.alpha * (1 - probs) ** self.gamma * nll
        no = (1 - self.alpha) * probs**self.gamma * (nll + chosen)
        return yes - no


def is_labelled(target: Target) -> bool:
    """Return whether the objects of the image are labelled; there may be none."""
    return target.labels is not None and target.boxes is not None


def crowds_of(target: Target) -> Tensor:
    """Return (N,) bool: which objects of an image are crowds."""
    if target.iscrowd is None:
        return torch.zeros_like(target.labels, dtype=torch.bool)
    return target.iscrowd.bool()


def class_agnostic_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Return the labels for `logits` (..., K): `labels`, or all 0 if K is 1, the class of any object."""
    return torch.zeros_like(labels) if logits.shape[-1] == 1 else labels


def _corners(boxes_cxcywh: Tensor) -> Tensor:
    """Return xyxy in the memory layout of `boxes_cxcywh` (..., 4), one block for each coordinate."""
    centers, halves = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    x, y = centers.unbind(-1)
    dx, dy = halves.unbind(-1)
    return torch.stack([x - dx, y - dy, x + dx, y + dy]).movedim(0, -1)


def finite_costs(costs: Tensor, crowd: Tensor) -> Tensor:
    """Return costs (L, M, Q) that can be added up; those of crowds are marked."""
    costs = costs.clamp(-_LARGEST, _LARGEST).where(costs.isfinite(), _WORST)
    return costs.masked_fill(crowd[:, None], _CROWD)


def assign(costs: np.ndarray, predictions: Any, counts: Sequence[int], copies: int) -> np.ndarray:
    """Return (L, B, Q) int64: the row of the object that each query is assigned to, or NO_OBJECT.

    `costs` (L, M, Q) have been through `finite_costs`; `predictions` has the fields `groups` and `name` and the
    property `parts`. Raises NumericsError when no cost of a layer is finite.
    """
    from scipy.optimize import linear_sum_assignment  # heavy, and needed in training only

    num_layers, _, num_queries = costs.shape
    rows = np.full((num_layers, len(counts), num_queries), NO_OBJECT, np.int64)
    size = num_queries // predictions.groups
    for layer in range(num_layers):
        _check(costs[layer], predictions, layer)
        for image, (end, count) in enumerate(zip(accumulate(counts), counts, strict=True)):
            objects = np.arange(end - count, end)
            objects = objects[costs[layer, objects, 0] != _CROWD].repeat(copies)
            for start in range(0, num_queries, size):
                chosen, queries = linear_sum_assignment(costs[layer, objects, start : start + size])
                rows[layer, image, start + queries] = objects[chosen]
    return rows


def _check(costs: np.ndarray, predictions: Any, layer: int) -> None:
    """Raise NumericsError when no cost of a layer is finite."""
    if not costs.size or costs.min() < _WORST or (costs == _CROWD).all():
        return
    shares = {name: 1 - values[layer].isfinite().double().mean().item() for name, values in predictions.parts.items()}
    raise NumericsError(
        f'no matching cost is finite: {predictions.name}, layer {layer + 1} of {len(predictions.logits)}',
        where=', '.join(f'{name} {share:.0%} not finite' for name, share in shares.items()),
        why='the network has diverged, or the targets are not numbers',
        fix='lower the learning rate, clip gradients (optim_wrapper.clip_grad) or use --amp off, then --resume',
    )
