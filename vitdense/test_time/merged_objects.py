"""Merging of predicted objects: across the windows of a large image, and over several views of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.ops.boxes import iou, to_original
from vitdense.ops.packed_masks import PackedMasks
from vitdense.types import Instances, Meta, ObjectOutputs, Outputs, QueryOutputs

SAME = 0.5  # IoU, where both windows look, of two boxes that are one object
COVERED = 0.8  # share of a piece of an object that a box of the neighbour covers
MARGIN = 0.01  # of a window's side: a box that ends so near to the border may go on behind it
FUSED = 0.55  # IoU of boxes in two views that are one object (Solovyev et al. 2019, section 4)

Read = Callable[[QueryOutputs, Sequence[Meta]], list[Instances]]


def read_objects(
    network: Callable, reads: Mapping[str, Read], imgs: Tensor, valid: Tensor | None = None
) -> dict[str, Outputs]:
    """Return the outputs of `network` for `imgs`, with `QueryOutputs` read at once: objects can be joined, queries not.

    `reads` are the `predict` of the tasks by name. Boxes are in pixels of the padded input.
    """
    input_size = tuple(imgs.shape[-2:])
    metas = [Meta(row, orig_size=input_size, size=input_size) for row in range(len(imgs))]
    outputs = network(imgs, valid)
    return {
        name: ObjectOutputs(tuple(reads[name](output, metas))) if isinstance(output, QueryOutputs) else output
        for name, output in outputs.items()
    }


def original_objects(outputs: ObjectOutputs, metas: Sequence[Meta]) -> list[Instances]:
    """Return the objects of every image in its original pixels."""
    return [_original(objects, meta) for objects, meta in zip(outputs.objects, metas, strict=True)]


def _original(objects: Instances, meta: Meta) -> Instances:
    size = meta.unpadded_size
    sizes = objects.boxes.new_tensor([[size, meta.orig_size]])  # (1, 2, 2)
    boxes = to_original(objects.boxes[None], sizes[:, 0], sizes[:, 1])[0]
    masks = objects.masks
    if isinstance(masks, PackedMasks):  # which have the original size
        return objects._replace(boxes=boxes)
    if masks is not None:
        masks = masks[:, : size[0], : size[1]]
        masks = masks if tuple(size) == tuple(meta.orig_size) else _resized_masks(masks, meta.orig_size)
    objects = objects._replace(boxes=boxes, masks=masks)
    if masks is None or meta.image_size is None:
        return objects
    inside = masks.flatten(1).any(1)  # what was found in the padding alone is no object
    return objects.select(inside)


class Pieces(NamedTuple):
    """All boxes of all windows of an image."""

    boxes: Tensor  # (N, 4) xyxy in pixels of the image
    scores: Tensor  # (N,)
    labels: Tensor  # (N,)
    window: Tensor  # (N,) int64
    cut: Tensor  # (N,) bool: the box ends at a border of its window behind which the image goes on


def join_windows(
    objects: Sequence[Instances],
    corners: Sequence[tuple[int, int]],
    size: tuple[int, int],
    input_size: tuple[int, int],
    *,
    packed_size: tuple[int, int] | None = None,
) -> Instances:
    """Return the objects of an image of `input_size` (H, W), found in windows of `size` at `corners` (top, left).

    Boxes are in pixels of their window. Two boxes of one class in two windows are one object when they agree where
    both windows look: cut to that region their IoU is at least `SAME`, or a box that ends at the border of its window
    (a piece) lies in the other by `COVERED`. Two whole boxes are compared as they are. Of an object, the whole box
    is kept, the best of several; a piece gives way to a whole box of at least half its score. An object larger than
    every window comes only in pieces: the kept box is what encloses those with at least half the score of the best.
    Boxes of one window are never compared: queries do not repeat themselves. Masks go with their boxes; packed ones
    are those of an image without padding.
    """
    pieces = _pieces(objects, corners, size, input_size)
    near = _same_objects(pieces, corners, size)
    groups = _grouped(pieces, near)
    if not groups:
        none = objects[0]
        masks = None if none.masks is None else _no_masks(none.masks, packed_size, input_size)
        return Instances(none.boxes[:0], none.scores[:0], none.labels[:0], masks)
    leaders = [members[0] for members in groups]
    boxes = torch.stack([_enclosing(pieces.boxes[members]) for members in groups])
    masks = None
    if objects[0].masks is not None:
        rows = [row for each in objects for row in range(len(each.boxes))]
        parts = [_pasted(objects, corners, pieces, rows, members, packed_size or input_size) for members in groups]
        if packed_size is None:
            masks = torch.stack([_placed(*part, input_size) for part in parts])
        else:
            masks = PackedMasks.of_parts(parts, packed_size)
    return Instances(boxes, pieces.scores[leaders], pieces.labels[leaders], masks)


def _pieces(
    objects: Sequence[Instances], corners: Sequence[tuple[int, int]], size: tuple[int, int], input_size: tuple[int, int]
) -> Pieces:
    parts = []
    for window, (each, (top, left)) in enumerate(zip(objects, corners, strict=True)):
        limits = each.boxes.new_tensor([size[1], size[0]] * 2)  # padding behind the window is no image
        boxes = torch.minimum(each.boxes, limits)
        inner = boxes.new_tensor(
            [left > 0, top > 0, left + size[1] < input_size[1], top + size[0] < input_size[0]]
        ).bool()
        ends = torch.cat([boxes[:, :2] <= MARGIN * limits[:2], boxes[:, 2:] >= (1 - MARGIN) * limits[2:]], dim=1)
        shifted = boxes + boxes.new_tensor([left, top] * 2)
        number = torch.full((len(boxes),), window, device=boxes.device)
        parts.append((shifted, each.scores, each.labels, number, (ends & inner).any(1)))
    return Pieces(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _same_objects(pieces: Pieces, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> dict[int, list[int]]:
    """Return for each row of `pieces` the rows of other windows that are the same object."""
    near: dict[int, list[int]] = {}
    rows_of = [(pieces.window == window).nonzero()[:, 0] for window in range(len(corners))]
    for one, other, region in _overlaps(corners, size):
        mine, theirs = rows_of[one], rows_of[other]
        if len(mine) and len(theirs):
            first, second = _agreeing(pieces, mine, theirs, region).nonzero(as_tuple=True)
            for row, column in zip(mine[first].tolist(), theirs[second].tolist(), strict=True):
                near.setdefault(row, []).append(column)
                near.setdefault(column, []).append(row)
    return near


def _overlaps(
    corners: Sequence[tuple[int, int]], size: tuple[int, int]
) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Yield pairs of windows that overlap, with the region xyxy that both cover."""
    for (one, here), (other, there) in _near_windows(corners, size[0]):
        top, left = (max(starts) for starts in zip(here, there, strict=True))
        bottom, right = (min(starts) + side for starts, side in zip(zip(here, there, strict=True), size, strict=True))
        if top < bottom and left < right:
            yield one, other, (left, top, right, bottom)


def _near_windows(
    corners: Sequence[tuple[int, int]], height: int
) -> Iterator[tuple[tuple[int, tuple[int, int]], tuple[int, tuple[int, int]]]]:
    """Yield pairs of numbered windows that share rows; `corners` come from the top down."""
    numbered = list(enumerate(corners))
    for one in numbered:
        below = takewhile(lambda other, top=one[1][0]: other[1][0] < top + height, islice(numbered, one[0] + 1, None))
        yield from ((one, other) for other in below)


def _agreeing(pieces: Pieces, mine: Tensor, theirs: Tensor, region: tuple[int, int, int, int]) -> Tensor:
    """Return (mine, theirs) bool: the two boxes are the same object."""
    low, high = pieces.boxes.new_tensor(region).view(2, 2).repeat(1, 2)
    clipped = [torch.minimum(torch.maximum(pieces.boxes[rows], low), high) for rows in (mine, theirs)]
    first, second = clipped[0][:, None], clipped[1][None]
    corner, end = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (end - corner).clamp(min=0).prod(-1)
    cut_mine, cut_theirs = pieces.cut[mine][:, None], pieces.cut[theirs][None]
    whole = ~cut_mine & ~cut_theirs
    overlap = torch.where(whole, iou(pieces.boxes[mine][:, None], pieces.boxes[theirs][None]), iou(first, second))
    covered = (cut_mine & (shared > COVERED * _area(first))) | (cut_theirs & (shared > COVERED * _area(second)))
    same_label = pieces.labels[mine][:, None] == pieces.labels[theirs][None]
    return same_label & (shared > 0) & ((overlap >= SAME) | covered)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def _grouped(pieces: Pieces, near: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Return the rows that make up each object that is kept, the best object first, and of each the best row first."""
    cut, scores = pieces.cut.tolist(), pieces.scores.tolist()
    rank = [score * (1 if piece else 2) for score, piece in zip(scores, cut, strict=True)]
    taken: set[int] = set()
    groups = []
    for row in sorted(range(len(rank)), key=lambda row: -rank[row]):
        if row in taken:
            continue
        members = [row]
        taken.add(row)
        for member in members:  # it grows while pieces are found
            others = [other for other in near.get(member, ()) if other not in taken]
            taken.update(others)
            if cut[row]:
                members += [other for other in others if cut[other] and scores[other] >= scores[row] / 2]
        groups.append(members)
    return sorted(groups, key=lambda members: -scores[members[0]])


def _enclosing(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])


def _no_masks(masks: Tensor | PackedMasks, packed: tuple[int, int] | None, input_size: tuple[int, int]) -> Any:
    return masks.new_zeros((0, *input_size)) if packed is None else PackedMasks([], packed)


def _pasted(
    objects: Sequence[Instances],
    corners: Sequence[tuple[int, int]],
    pieces: Pieces,
    rows: Sequence[int],
    members: Sequence[int],
    size: tuple[int, int],
) -> tuple[Tensor, tuple[int, int]]:
    """Return the mask of an object in the windows that see it, and their upper left corner: the union of its pieces.

    `rows` are indices in their windows; what lies beyond an image of `size` is cut off.
    """
    placed = []
    for member in members:
        window = int(pieces.window[member])
        top, left = corners[window]
        mask = torch.as_tensor(objects[window].masks[rows[member]])[: size[0] - top, : size[1] - left]
        placed.append((mask, top, left))
    first = min(top for _, top, _ in placed), min(left for _, _, left in placed)
    bottom, right = (max(part[1 + axis] + part[0].shape[axis] for part in placed) for axis in (0, 1))
    union = placed[0][0].new_zeros(bottom - first[0], right - first[1])
    for mask, top, left in placed:
        union[top - first[0] :, left - first[1] :][: mask.shape[0], : mask.shape[1]] |= mask
    return union, first


def _placed(mask: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return a mask (H, W) of `size` that is `mask` (h, w) at `corner`."""
    whole = mask.new_zeros(size)
    whole[corner[0] :, corner[1] :][: mask.shape[0], : mask.shape[1]] = mask
    return whole


def unmirrored(objects: Instances, width: int) -> Instances:
    """Return objects of a mirrored image of `width` pixels as those of the image."""
    left, top, right, bottom = objects.boxes.unbind(-1)
    boxes = torch.stack([width - right, top, width - left, bottom], dim=-1)
    return objects._replace(boxes=boxes, masks=None if objects.masks is None else objects.masks.flip(-1))


def rescaled(objects: Instances, size: tuple[int, int], input_size: tuple[int, int]) -> Instances:
    """Return objects of an image of `size` (H, W) as those of the same image at `input_size` (H, W)."""
    if tuple(size) == tuple(input_size):
        return objects
    factors = objects.boxes.new_tensor([input_size[1] / size[1], input_size[0] / size[0]] * 2)
    return objects._replace(
        boxes=objects.boxes * factors,
        masks=None if objects.masks is None else _resized_masks(objects.masks, input_size),
    )


def fuse_views(views: Sequence[Instances]) -> Instances:
    """Return the objects of an image that was predicted in several `views`, in its own pixels.

    Weighted boxes fusion (Solovyev et al. 2019, https://arxiv.org/abs/1910.13302): best first, a box joins the object
    of its class with which it overlaps most, by an IoU of at least `FUSED`, if that has none of its view. The box of
    an object is the mean of its boxes weighted by their scores; its score is the sum of their scores divided by the
    number of views, so that an object of only one view has a lower score. The mask is that of the best view.
    """
    boxes, scores, labels = (torch.cat(columns) for columns in zip(*(view[:3] for view in views), strict=True))
    view_of = torch.cat([torch.full((len(view.boxes),), number) for number, view in enumerate(views)]).tolist()
    order = scores.argsort(descending=True, stable=True).tolist()
    fused, groups = boxes.clone()[:0], []
    for row in order:
        group = _nearest(boxes[row], labels[row], view_of[row], fused, groups, labels, view_of)
        if group is None:
            fused, groups = torch.cat([fused, boxes[row : row + 1]]), [*groups, [row]]
            continue
        groups[group].append(row)
        weights = scores[groups[group]][:, None].clamp(min=torch.finfo(scores.dtype).tiny)
        fused[group] = (boxes[groups[group]] * weights).sum(0) / weights.sum()
    leaders = [members[0] for members in groups]
    mean = torch.stack([scores[members].sum() / len(views) for members in groups]) if groups else scores[:0]
    best = mean.argsort(descending=True, stable=True)
    masks = None
    if views[0].masks is not None:
        masks = torch.cat([view.masks for view in views])[leaders][best]
    return Instances(fused[best], mean[best], labels[leaders][best], masks)


def _nearest(
    box: Tensor, label: Tensor, view: int, fused: Tensor, groups: Sequence[Sequence[int]], labels: Tensor, view_of: list
) -> int | None:
    """Return the group whose fused box overlaps most with `box`, of its label and without one of its view."""
    overlaps = iou(fused, box[None])
    for group in (overlaps >= FUSED).nonzero()[:, 0][overlaps[overlaps >= FUSED].argsort(descending=True)].tolist():
        members = groups[group]
        if labels[members[0]] == label and view not in [view_of[member] for member in members]:
            return group
    return None


def _resized_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(masks):
        return masks.new_zeros((0, *size))
    return functional.interpolate(masks[:, None].float(), tuple(size), mode='nearest-exact')[:, 0] > 0.5
