"""Masks of objects and of queries at sampled points, and the assignment of queries to objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check_ranges
from vitdense.ops.masks import sample_points
from vitdense.tasks.matching import assign, crowds_of, finite_costs
from vitdense.types import IGNORE, QueryOutputs, Target


class MaskTargets(NamedTuple):
    """The objects of all images of a batch, one after the other."""

    labels: Tensor  # (M,) int64
    images: Tensor  # (M,) int64 row of the image
    crowd: Tensor  # (M,) bool, True: a crowd, which no query is assigned to
    counts: tuple[int, ...]  # number of objects of each image, known without a transfer from the device
    masks: tuple[Tensor, ...]  # of each image, (N, H, W) bool in its own size, without padding
    known: tuple[Tensor | None, ...]  # of each image, (H, W) bool: somebody labelled the pixel; None: all of them

    @classmethod
    def of_objects(cls, targets: Sequence[Target], device: torch.device) -> MaskTargets:
        """Return the objects of `targets`, which all have labels and masks."""
        empty = torch.zeros(0, dtype=torch.bool, device=device)
        crowd = [crowds_of(target) for target in targets]
        labels = [target.labels for target in targets]
        masks = tuple(target.masks.bool() for target in targets)
        return cls._of(labels, torch.cat([empty, *crowd]), masks, (None,) * len(masks), device)

    @classmethod
    def of_classes(cls, maps: Sequence[Tensor], device: torch.device) -> MaskTargets:
        """Return each class of each label map (H, W) as one object; pixels with IGNORE are not known."""
        labels, masks, known = [], [], []
        for labelled in maps:
            classes = labelled.unique()
            classes = classes[classes != IGNORE]
            labels.append(classes.long())
            masks.append(labelled == classes[:, None, None])
            known.append(labelled != IGNORE)
        crowd = torch.zeros(sum(map(len, labels)), dtype=torch.bool, device=device)
        return cls._of(labels, crowd, tuple(masks), tuple(known), device)

    @classmethod
    def _of(
        cls, labels: Sequence[Tensor], crowd: Tensor, masks: tuple, known: tuple, device: torch.device
    ) -> MaskTargets:
        counts = tuple(len(some) for some in labels)
        labels = torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *labels])
        images = [torch.full((count,), row, device=device) for row, count in enumerate(counts)]
        return cls(labels, torch.cat([labels[:0], *images]), crowd, counts, masks, known)

    def sample(self, image: int, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masks `rows` (n,) of an image, counted in it, at `points` (n, P, 2) or (P, 2) in [0, 1] of it.

        Also return which points count, bool of the shape of the points: those on pixels that somebody labelled.
        """
        masks, known = self.masks[image], self.known[image]
        height, width = masks.shape[-2:]
        positions = points * points.new_tensor([width, height])
        values = sample_points(masks[rows], positions, points.new_tensor([height, width]))
        if known is None:
            return values, torch.ones_like(positions[..., 0], dtype=torch.bool)
        x, y = positions.long().unbind(-1)
        return values, known[y.clamp(max=height - 1), x.clamp(max=width - 1)]


class LayerMaskPredictions(NamedTuple):
    """Predictions of the layers of one decoder, L of them; the last layer is the final one."""

    logits: Tensor  # (L, B, Q, K + 1) float32
    masks: tuple[Tensor, ...]  # L times (B, Q, h, w), of the network's own dtype
    sizes: Tensor  # (B, 2) float32 (H, W) in input pixels of the region of each image, in whole cells
    input_size: tuple[int, int]  # (H, W) that the masks cover, padding included
    groups: int = 1
    name: str = 'queries'

    @classmethod
    def of(cls, outputs: QueryOutputs) -> LayerMaskPredictions:
        """Return the predictions of `outputs.aux` and of `outputs` itself, in this order."""
        layers = (*outputs.aux, outputs)
        logits = torch.stack([layer.class_logits for layer in layers]).float()
        return cls(logits, tuple(layer.mask_logits for layer in layers), outputs.sizes, outputs.input_size)

    @property
    def parts(self) -> dict[str, Sequence[Tensor]]:
        """Predictions by name, for messages."""
        return {'class logits': self.logits, 'mask logits': self.masks}

    def sample(self, mask_logits: Tensor, points: Tensor, images: Tensor, lengths: Tensor) -> Tensor:
        """Return mask logits `mask_logits` (n, h, w) at `points` (n, P, 2) or (P, 2) in [0, 1] of their images,
        float32.

        `images` (n,) or () are the rows of the images, `lengths` (B, 2) their own sizes (H, W) in pixels.
        """
        cells = points.new_tensor(mask_logits.shape[-2:]) / points.new_tensor(self.input_size)  # (2,) cells of a pixel
        positions = points * (lengths * cells)[images].flip(-1).unsqueeze(-2)
        return sample_points(mask_logits.float(), positions, (self.sizes * cells).round()[images])


@dataclass(frozen=True, kw_only=True)
class MaskMatcher:
    """The assignment of objects to queries with the smallest sum of costs (Cheng et al. 2022, Mask2Former, arXiv
    2112.01527, section 3.3): `class_weight` times minus the probability of the object's class, `mask_weight` times the
    binary cross-entropy and `dice_weight` times the Dice loss of the masks, both at `num_points` random points of the
    image, the same for all of its queries and objects.

    Points on unlabelled pixels do not count. A query is assigned to one object at most, and none to crowds.
    Costs of all layers come to the CPU in one transfer. Raises NumericsError when nothing in a layer is finite.
    """

    form: ClassVar[Literal['softmax']] = 'softmax'
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    num_points: int = 12544

    def __post_init__(self) -> None:
        check_ranges(self, ('class_weight', 'mask_weight', 'dice_weight'), 0)
        check_ranges(self, ('num_points',), 1)

    @torch.no_grad()
    def __call__(self, predictions: LayerMaskPredictions, targets: MaskTargets) -> Tensor:
        """Return (L, B, Q) int64: the row of `targets` that a query is assigned to, or NO_OBJECT."""
        costs = finite_costs(self.costs(predictions, targets), targets.crowd)
        return torch.from_numpy(assign(costs.cpu().numpy(), predictions, targets.counts, 1)).to(targets.labels.device)

    def costs(self, predictions: LayerMaskPredictions, targets: MaskTargets) -> Tensor:
        """Return (L, M, Q) float32: what it costs that a query of an object's own image is assigned to it."""
        lengths = sizes_of(targets, predictions)
        layers = []
        for logits, masks in zip(predictions.logits, predictions.masks, strict=True):
            pairs = zip(logits, masks, strict=True)
            blocks = [self._image(row, *pair, predictions, targets, lengths) for row, pair in enumerate(pairs)]
            layers.append(torch.cat([logits.new_zeros(0, logits.shape[1]), *blocks]))
        return torch.stack(layers)

    def _image(
        self,
        row: int,
        logits: Tensor,
        masks: Tensor,
        predictions: LayerMaskPredictions,
        targets: MaskTargets,
        lengths: Tensor,
    ) -> Tensor:
        """Return (N, Q) for the objects and queries of one image."""
        points = torch.rand(self.num_points, 2, device=logits.device)
        rows = torch.arange(targets.counts[row], device=logits.device)
        wanted, counted = targets.sample(row, rows, points)  # (N, P), (P,)
        point_logits = predictions.sample(masks, points, torch.tensor(row, device=logits.device), lengths)  # (Q, P)
        weight = counted.float()
        total = weight.sum().clamp(min=1)
        wanted = wanted * weight
        bce = (functional.softplus(point_logits) @ weight - wanted @ point_logits.T) / total  # (N, Q)
        probs = point_logits.sigmoid()
        areas = wanted.sum(1, keepdim=True) + probs @ weight
        dice = 1 - (2 * wanted @ probs.T + 1) / (areas + 1)
        labels = targets.labels[targets.images == row] if targets.counts[row] else targets.labels[:0]
        chosen = logits.softmax(-1)[:, labels].T  # (N, Q)
        return self.mask_weight * bce + self.dice_weight * dice - self.class_weight * chosen


def sizes_of(targets: MaskTargets, predictions: LayerMaskPredictions) -> Tensor:
    """Return the own (H, W) of each image, (B, 2) float32 in pixels.

    Raises ValueError for masks that do not fit into their image.
    """
    sizes = [tuple(masks.shape[-2:]) for masks in targets.masks]
    if any(size[0] > predictions.input_size[0] or size[1] > predictions.input_size[1] for size in sizes):
        raise ValueError(f'masks of {max(sizes)} pixels are larger than the padded input {predictions.input_size}')
    return predictions.sizes.new_tensor(sizes).view(-1, 2)
