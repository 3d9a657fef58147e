"""Losses of queries that hold masks: a class for each, and a mask at points where it is in doubt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check, check_ranges
from vitdense.registry import build
from vitdense.tasks.detection_losses import SoftmaxCrossEntropy
from vitdense.tasks.losses import share_of_count
from vitdense.tasks.mask_matching import LayerMaskPredictions, MaskMatcher, MaskTargets, sizes_of
from vitdense.types import QueryOutputs


@dataclass(frozen=True, kw_only=True)
class MaskLoss:
    """The losses of Mask2Former (Cheng et al. 2022, arXiv 2112.01527, section 3.3), as EoMT has them.

    Objects are assigned to queries by `matcher`. The cross-entropy of the classes counts `class_weight`, with
    `no_object_weight` for queries without object. Masks of matched queries are compared at `num_points` points each:
    `oversample` times as many are drawn evenly over the image, those in most doubt (logits nearest to 0) are kept as
    `importance` of the points, and the rest are new random ones (PointRend, arXiv 1912.08193, section 3.1). The binary
    cross-entropy there counts `mask_weight`, the Dice loss `dice_weight`; both are divided by the number of objects of
    all ranks. Points on unlabelled pixels do not count. Predictions of earlier layers are matched and
    trained like the last ones, in one `loss_aux`.
    """

    matcher: object | dict = field(default_factory=MaskMatcher)
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        object.__setattr__(self, 'matcher', build(self.matcher))
        check_ranges(self, ('class_weight', 'mask_weight', 'dice_weight', 'no_object_weight'), 0)
        check_ranges(self, ('num_points', 'oversample'), 1)
        check_ranges(self, ('importance',), 0, 1)

    def __call__(self, outputs: QueryOutputs, targets: MaskTargets) -> dict[str, Tensor]:
        """Return `loss_class`, `loss_mask` and `loss_dice`, and `loss_aux` where there are earlier layers."""
        fix = 'use a network whose queries have masks, such as EoMT'
        check(outputs.mask_logits is not None, 'mask_logits', None, 'this task trains the masks of queries', fix)
        predictions = LayerMaskPredictions.of(outputs)
        rows = self.matcher(predictions, targets)
        count = share_of_count((~targets.crowd).sum())
        classes = self._classes(predictions, rows, targets, count)
        pairs = zip(predictions.masks, rows, strict=True)
        masks = torch.stack([self._masks(*pair, predictions, targets) for pair in pairs]) / count  # (L, 2)
        values = {
            'loss_class': classes,
            'loss_mask': self.mask_weight * masks[:, 0],
            'loss_dice': self.dice_weight * masks[:, 1],
        }
        losses = {name: value[-1] for name, value in values.items()}
        if outputs.aux:
            losses['loss_aux'] = sum(value[:-1].sum() for value in values.values())
        return losses

    def _classes(self, predictions: LayerMaskPredictions, rows: Tensor, targets: MaskTargets, count: Tensor) -> Tensor:
        labels = torch.cat([targets.labels, targets.labels.new_zeros(1)])[rows.clamp(min=-1)].where(rows >= 0, rows)
        part = SoftmaxCrossEntropy(weight=self.class_weight, no_object_weight=self.no_object_weight)
        return part(predictions.logits, labels, torch.zeros_like(labels), count)

    def _masks(self, masks: Tensor, rows: Tensor, predictions: LayerMaskPredictions, targets: MaskTargets) -> Tensor:
        """Return the summed cross-entropy and Dice loss of one layer, (2,). `rows` (B, Q) are the queries' objects."""
        images, queries = (rows >= 0).nonzero(as_tuple=True)  # image after image
        mask_logits, lengths = masks[images, queries], sizes_of(targets, predictions)  # (n, h, w)
        with torch.no_grad():
            points = self._points(mask_logits, predictions, images, lengths)
            wanted, counted = _at(points, rows[images, queries], images, targets)
        logits = predictions.sample(mask_logits, points, images, lengths)  # (n, P)
        weight = counted.float()
        bce = (functional.softplus(logits) - logits * wanted) * weight
        probs, wanted = logits.sigmoid() * weight, wanted * weight
        areas = probs.sum(1) + wanted.sum(1)
        dice = 1 - (2 * (probs * wanted).sum(1) + 1) / (areas + 1)
        return torch.stack([(bce.sum(1) / weight.sum(1).clamp(min=1)).sum(), dice.sum()])

    def _points(
        self, mask_logits: Tensor, predictions: LayerMaskPredictions, images: Tensor, lengths: Tensor
    ) -> Tensor:
        """Return points (n, P, 2) in [0, 1] of the images, most of them where the masks are in doubt."""
        device, number = mask_logits.device, len(mask_logits)
        points = torch.rand(number, int(self.num_points * self.oversample), 2, device=device)
        certainty = predictions.sample(mask_logits, points, images, lengths).abs()
        num_doubtful = int(self.importance * self.num_points)
        chosen = certainty.topk(num_doubtful, dim=1, largest=False).indices
        others = torch.rand(number, self.num_points - num_doubtful, 2, device=device)
        return torch.cat([torch.take_along_dim(points, chosen[..., None], dim=1), others], dim=1)


def _at(points: Tensor, objects: Tensor, images: Tensor, targets: MaskTargets) -> tuple[Tensor, Tensor]:
    """Return the masks of `objects` (n,), rows of the targets, at points (n, P, 2), and which points count, bool."""
    empty = points.new_zeros(0, points.shape[1])
    values, counted = [empty], [empty.bool()]
    start = 0
    for image, count in enumerate(targets.counts):
        mine = images == image
        if count:
            value, counts = targets.sample(image, objects[mine] - start, points[mine])
            values.append(value), counted.append(counts)
        start += count
    return torch.cat(values), torch.cat(counted)


def as_losses(part: Any) -> MaskLoss:
    """Return the losses that `part`, a MaskLoss, its recipe or None (its defaults), describes."""
    return MaskLoss() if part is None else build(part)
