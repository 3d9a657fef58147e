"""Box operations: layouts, IoU and generalized IoU, and scaling from network input to original image.

`boxes` are xyxy; other layouts are named, as in `boxes_cxcywh`. Overlaps broadcast and are finite for finite boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

EPSILON = 1e-7  # smallest area that is divided by


def to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Return the corners (..., 4) of boxes in the layout centre, width and height."""
    return box_convert(boxes_cxcywh, 'cxcywh', 'xyxy')


def to_cxcywh(boxes: Tensor) -> Tensor:
    """Return centre, width and height (..., 4) of `boxes` (..., 4) xyxy."""
    return box_convert(boxes, 'xyxy', 'cxcywh')


def scales_of(sizes: Tensor) -> Tensor:
    """Return the factors (..., 4) from boxes in [0, 1], of either layout, to pixels; `sizes` (..., 2) are (H, W)."""
    return torch.cat([sizes.flip(-1)] * 2, dim=-1)  # (W, H, W, H)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of `boxes` (..., 4) and `others` (..., 4), in [0, 1]; shapes broadcast."""
    intersection, union = _areas(boxes.unbind(-1), others.unbind(-1))
    return intersection / union.clamp(min=EPSILON)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalised IoU of `boxes` (..., 4) and `others` (..., 4), in [-1, 1]; shapes broadcast.

    The IoU minus the share of the smallest enclosing box that neither covers (Rezatofighi et al. 2019, algorithm 1).
    """
    mine, theirs = boxes.unbind(-1), others.unbind(-1)
    intersection, union = _areas(mine, theirs)
    width = torch.maximum(mine[2], theirs[2]) - torch.minimum(mine[0], theirs[0])
    height = torch.maximum(mine[3], theirs[3]) - torch.minimum(mine[1], theirs[1])
    enclosing = width * height
    return intersection / union.clamp(min=EPSILON) - (enclosing - union) / enclosing.clamp(min=EPSILON)


def to_original(boxes: Tensor, sizes: Tensor, orig_sizes: Tensor) -> Tensor:
    """Return `boxes` (B, N, 4), in pixels of images of `sizes` (B, 2), scaled and clipped to the original images.

    `sizes` and `orig_sizes` are (H, W).
    """
    limits = scales_of(orig_sizes)[:, None]  # (B, 1, 4)
    return torch.minimum((boxes * (limits / scales_of(sizes)[:, None])).clamp(min=0), limits)


def _areas(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the areas of intersection and union."""
    width = torch.minimum(mine[2], theirs[2]) - torch.maximum(mine[0], theirs[0])
    height = torch.minimum(mine[3], theirs[3]) - torch.maximum(mine[1], theirs[1])
    intersection = width.clamp(min=0) * height.clamp(min=0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (mine, theirs)]
    return intersection, areas[0] + areas[1] - intersection
