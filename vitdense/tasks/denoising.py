"""Noised objects as extra queries of training (DN-DETR, DINO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitdense.arguments import check_ranges
from vitdense.ops.boxes import to_cxcywh, to_xyxy
from vitdense.tasks.matching import NO_OBJECT, ObjectTargets
from vitdense.types import DenoisingQueries

SMALLEST = 1e-3  # least width and height of a noised box, in shares of the image


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """Contrastive denoising (Zhang et al. 2022, DINO, section 3.3): restore objects from noised labels and boxes.

    A group holds every object of an image once, with noise to be undone, and once more, with so much noise that
    the target is "no object". There are as many groups as let all images have about `num_queries` queries of the
    first kind, at least one. With `contrastive=False` groups hold the first kind only (Li et al. 2022, DN-DETR).

    A label is replaced by a random class with probability `label_noise / 2`. Every side of a box moves by up to
    `box_noise / 2` of the width (height), in the contrastive half by one to two times as much; boxes stay in [0, 1].
    """

    num_queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0
    contrastive: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, ('num_queries',), 1)
        check_ranges(self, ('label_noise',), 0, 2)
        check_ranges(self, ('box_noise',), 0)

    def __call__(self, targets: ObjectTargets, num_classes: int) -> DenoisingQueries:
        """Return the queries of a batch; images with fewer objects than others, and crowds, leave filler.

        A batch without any object gets one object of filler for each image: the parameters that embed them must
        have a gradient on every rank.
        """
        most = max(targets.counts, default=0)
        groups = max(self.num_queries // max(most, 1), 1) if most else 1
        objects, labels, boxes = _padded(targets, max(most, 1))
        kinds = torch.tensor([True, False] if self.contrastive else [True], device=labels.device)
        shape = (labels.shape[0], groups, len(kinds), labels.shape[1])  # (B, groups, kinds, N)
        objects = objects[:, None, None].expand(shape)
        positive = kinds[:, None].expand(shape)
        labels = labels[:, None, None].expand(shape)
        replaced = torch.rand(shape, device=labels.device) < self.label_noise / 2
        labels = torch.where(replaced, torch.randint_like(labels, num_classes), labels)
        boxes = self._noised_boxes(boxes[:, None, None].expand(*shape, 4), positive)
        filler = objects < 0
        return DenoisingQueries(
            labels=labels.masked_fill(filler, 0).flatten(1),
            boxes=boxes.flatten(1, 3),
            objects=objects.flatten(1),
            positive=(positive & ~filler).flatten(1),
            groups=groups,
        )

    def _noised_boxes(self, boxes_cxcywh: Tensor, positive: Tensor) -> Tensor:
        share = torch.rand(boxes_cxcywh.shape, device=boxes_cxcywh.device)
        share = share + (~positive[..., None]).float()
        sign = torch.randint_like(share, 2) * 2 - 1
        reach = torch.cat([boxes_cxcywh[..., 2:]] * 2, dim=-1) / 2  # half of (w, h, w, h)
        corners = to_xyxy(boxes_cxcywh) + sign * share * self.box_noise * reach
        noised = to_cxcywh(corners.clamp(0, 1))
        return torch.cat([noised[..., :2], noised[..., 2:].clamp(min=SMALLEST)], dim=-1)


def _padded(targets: ObjectTargets, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each image its objects' rows in the target (B, N), NO_OBJECT for filler; labels; boxes (B, N, 4)."""
    device, batch = targets.labels.device, len(targets.counts)
    rows = torch.arange(len(targets.labels), device=device) - targets.starts[targets.images]
    objects = torch.full((batch, length), NO_OBJECT, device=device)
    labels = torch.zeros((batch, length), dtype=torch.int64, device=device)
    boxes = torch.full((batch, length, 4), 0.5, device=device)
    objects[targets.images, rows] = rows.masked_fill(targets.crowd, NO_OBJECT)
    labels[targets.images, rows] = targets.labels
    boxes[targets.images, rows] = targets.boxes
    return objects, labels, boxes
