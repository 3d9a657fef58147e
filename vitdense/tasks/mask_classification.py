"""Queries with masks: read as the objects of an image, or as one label for every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import label_source, within
from vitdense.errors import DataError
from vitdense.ops.mask_labels import class_scores, labels_of_masks, log_scores, resize_masks
from vitdense.ops.masks import boxes_of_masks
from vitdense.ops.upsample import refuse_non_finite
from vitdense.tasks.detection import rows_of
from vitdense.tasks.mask_losses import as_losses
from vitdense.tasks.mask_matching import MaskTargets
from vitdense.tasks.semantic import graph_labels, label_maps
from vitdense.types import Instances, MaskScores, Meta, PixelOutputs, QueryOutputs, SemanticMap, Target

ScoreForm = Literal['pixels', 'scores', 'factors']
MASKS_AT_A_TIME = 1 << 22  # values of full-size masks that are worked on together


class InstanceTask:
    """Train `QueryOutputs` with masks on the objects of images, and read `Instances` with masks from them.

    `field` is the field of `Target` that holds the classes, and `datasets` names the data sets (`Meta.dataset`) whose
    images it trains on (None: all); these must give masks. `losses` is a `MaskLoss` or its recipe.

    A prediction is one of the `top_k` best pairs of query and class; its mask is the pixels with a logit above 0, its
    score the probability of the class times the mean probability of these pixels, and its box encloses them
    (Mask2Former, arXiv 2112.01527; the instance inference of EoMT). Masks without a pixel are left out.
    """

    def __init__(
        self,
        *,
        field: str = 'labels',
        datasets: Sequence[str] | None = None,
        losses: object | dict | None = None,
        top_k: int = 100,
    ) -> None:
        within(top_k, 1, float('inf'), 'InstanceTask.top_k')
        self.field, self.datasets = label_source('InstanceTask', field, datasets)
        self.losses = as_losses(losses)
        self.top_k = top_k

    def loss(self, outputs: QueryOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of `MaskLoss`. Images without labels are left out.

        Raises DataError for an image whose objects have no masks.
        """
        rows = [row for row, target in enumerate(targets) if target.labels is not None]
        if any(targets[row].masks is None for row in rows):
            raise DataError(
                'there are objects without masks',
                where='InstanceTask.loss(targets)',
                why='masks are what it trains',
                fix='let the data set give masks (CocoDetection: masks=True), or name those that do: datasets=[...]',
            )
        with torch.autocast(outputs.class_logits.device.type, enabled=False):
            objects = MaskTargets.of_objects([targets[row] for row in rows], outputs.class_logits.device)
            return self.losses(rows_of(outputs, rows), objects)

    @torch.no_grad()
    def predict(self, outputs: QueryOutputs, metas: Sequence[Meta]) -> list[Instances]:
        """Return the best objects of every image, in its original size."""
        refuse_non_finite(outputs.mask_logits)  # masks would be empty
        probs = outputs.class_logits.float().softmax(-1)[..., :-1]
        images = zip(probs, outputs.mask_logits, metas, strict=True)
        return [self._image(*image, outputs.input_size) for image in images]

    def _image(self, probs: Tensor, masks: Tensor, meta: Meta, input_size: tuple[int, int]) -> Instances:
        """Return the objects of one image from `probs` (Q, K) and mask logits (Q, h, w)."""
        scores, indices = probs.flatten().topk(min(self.top_k, probs.numel()))
        queries, labels = indices // probs.shape[1], indices % probs.shape[1]
        wanted, back = queries.unique(return_inverse=True)
        parts = [*_full_masks(masks[wanted], meta, input_size)]
        full, mask_confidence = (torch.cat(part)[back] for part in zip(*parts, strict=True))
        scores = scores * mask_confidence
        order = scores.argsort(descending=True, stable=True)
        order = order[full[order].flatten(1).any(1)]
        full = full[order]
        return Instances(boxes_of_masks(full), scores[order], labels[order], full)


class MaskSemanticTask:
    """Train `QueryOutputs` with masks on label maps, each class of an image an object, and read label maps from them.

    `field` is the field of `Target` that holds the target; `datasets` names the data sets (`Meta.dataset`) whose
    images it trains on (None: all). `losses` is a `MaskLoss` or its recipe. Unlabelled pixels do not count.
    """

    def __init__(self, *, field: str = 'semantic', datasets: Sequence[str] | None = None, losses: Any = None) -> None:
        self.field, self.datasets = label_source('MaskSemanticTask', field, datasets)
        self.losses = as_losses(losses)

    def loss(self, outputs: QueryOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of `MaskLoss`. Images without labels are left out."""
        rows = [row for row, target in enumerate(targets) if target.value_of(self.field) is not None]
        with torch.autocast(outputs.class_logits.device.type, enabled=False):
            maps = [targets[row].value_of(self.field) for row in rows]
            objects = MaskTargets.of_classes(maps, outputs.class_logits.device)
            return self.losses(rows_of(outputs, rows), objects)

    @torch.no_grad()
    def blendable(self, outputs: QueryOutputs, form: ScoreForm) -> PixelOutputs | MaskScores:
        """Return the scores of all classes at every pixel of the padded input, which queries do not have, for averages.

        'scores' are what EoMT averages over windows, 'pixels' their logarithms, which as logits can be averaged over
        views, and 'factors' what the scores multiply out: little memory, and rows are made when they are read. Masks
        are resized before they become scores: on their coarse grid, borders within cells would be lost.
        """
        input_size = outputs.input_size
        if form == 'factors':
            return MaskScores(_probs(outputs), outputs.mask_logits.float(), input_size)
        scores_of = log_scores if form == 'pixels' else class_scores
        size = dict(input_size=input_size, crop=input_size, out=input_size)
        masks = (resize_masks(each.float(), **size) for each in outputs.mask_logits)
        pairs = zip(_probs(outputs), masks, strict=True)
        return PixelOutputs(torch.stack([scores_of(*pair) for pair in pairs]), input_size)

    def graph_predictions(
        self, outputs: QueryOutputs, extent: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the label maps, as `GraphTask` says."""
        masks = functional.interpolate(outputs.mask_logits.float(), outputs.input_size, mode='bilinear')
        if extent != outputs.input_size:
            masks = functional.interpolate(masks, extent, mode='bilinear')
        return {'map': graph_labels(class_scores(_probs(outputs), masks), extent, extent, size)}

    @torch.no_grad()
    def predict(self, outputs: QueryOutputs | PixelOutputs, metas: Sequence[Meta]) -> list[SemanticMap]:
        """Return the class of the largest score at every pixel, in each image's original size.

        `PixelOutputs` are those of `blendable`, averaged.
        """
        if isinstance(outputs, PixelOutputs):
            return label_maps(outputs, metas)
        refuse_non_finite(outputs.class_logits)
        refuse_non_finite(outputs.mask_logits)
        maps = []
        for probs, masks, meta in zip(_probs(outputs), outputs.mask_logits, metas, strict=True):
            size = dict(input_size=outputs.input_size, crop=meta.unpadded_size, out=meta.orig_size)
            maps.append(SemanticMap(labels_of_masks(probs, masks, **size)))
        return maps


def _full_masks(masks: Tensor, meta: Meta, input_size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a few masks at a time: (n, H, W) bool in the original size, and the mean probability of their pixels."""
    step = max(MASKS_AT_A_TIME // (meta.orig_size[0] * meta.orig_size[1]), 1)
    for some in masks.split(step):
        logits = resize_masks(some.float(), input_size=input_size, crop=meta.unpadded_size, out=meta.orig_size)
        inside = logits > 0
        mass = (logits.sigmoid() * inside).flatten(1).sum(1)
        yield inside, mass / inside.flatten(1).sum(1).clamp(min=1)


def _probs(outputs: QueryOutputs) -> Tensor:
    return outputs.class_logits.float().softmax(-1)[..., :-1]
