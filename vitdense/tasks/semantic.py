"""Semantic segmentation: one label for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check, label_source
from vitdense.ops.upsample import full_resolution_labels
from vitdense.registry import build
from vitdense.tasks.losses import CrossEntropy
from vitdense.types import IGNORE, Meta, PixelOutputs, SemanticMap, Target

ACCURACY_STEP = 4  # the logged accuracy reads every fourth pixel of every fourth row: a fair sample at 1/16 of the cost


class SemanticTask:
    """Train `PixelOutputs` on label maps, and read label maps of the original size from them.

    `field` is the field of `Target` that holds the target; `datasets` names the data sets (`Meta.dataset`) whose
    images it trains on (None: all). `losses` are parts of `vitdense.tasks.losses`, or recipes of them; their
    values are added. Auxiliary outputs of the network get the same losses, times `aux_weight`, in one `loss_aux`.
    """

    def __init__(
        self,
        *,
        field: str = 'semantic',
        datasets: Sequence[str] | None = None,
        losses: Sequence[object | dict] | None = None,
        aux_weight: float = 0.4,
    ) -> None:
        self.field, self.datasets = label_source('SemanticTask', field, datasets)
        self.losses = _parts(losses)
        self.aux_weight = aux_weight

    def loss(self, outputs: PixelOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return `loss_<part>` for every part, `loss_aux` when there are auxiliary outputs, and `acc`.

        The logits are resized bilinearly to the size of the padded input and cropped to the targets. Images without
        labels are left out. `acc` is the share of labelled pixels that are right, from a sample of them.
        """
        rows = [row for row, target in enumerate(targets) if target.value_of(self.field) is not None]
        with torch.autocast(outputs.logits.device.type, enabled=False):
            labels = self._labels(rows, targets, outputs)
            full = _full(outputs.logits, rows, outputs.input_size, labels.shape[-2:])
            losses = {f'loss_{part.name}': part(full, labels) for part in self.losses}
            accuracy = _accuracy(full, labels)
            del full  # the losses keep what they need of it
            if outputs.aux:
                input_size = outputs.input_size
                grids = (_full(logits, rows, input_size, labels.shape[-2:]) for logits in outputs.aux)
                losses['loss_aux'] = self.aux_weight * sum(part(grid, labels) for grid in grids for part in self.losses)
        return losses | {'acc': accuracy}

    def predict(self, outputs: PixelOutputs, metas: Sequence[Meta]) -> list[SemanticMap]:
        """Return the likeliest class of every pixel, in each image's original size."""
        return label_maps(outputs, metas)

    def graph_predictions(
        self, outputs: PixelOutputs, extent: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the label maps, as `GraphTask` says."""
        return {'map': graph_labels(outputs.logits, outputs.input_size, extent, size)}

    def _labels(self, rows: Sequence[int], targets: Sequence[Target], outputs: PixelOutputs) -> Tensor:
        """Return (rows, H, W) int64: the label maps, padded with IGNORE to the largest of them.

        Without rows it is one map of no pixels: the losses still meet the other ranks in their collective operations.
        """
        if not rows:
            return torch.zeros((1, 0, 0), dtype=torch.int64, device=outputs.logits.device)
        maps = [targets[row].value_of(self.field) for row in rows]
        height, width = (max(sides) for sides in zip(*(labels.shape for labels in maps), strict=True))
        if height > outputs.input_size[0] or width > outputs.input_size[1]:
            raise ValueError(
                f'a label map of {(height, width)} pixels is larger than the padded input {outputs.input_size}'
            )
        padded = outputs.logits.new_full((len(maps), height, width), IGNORE, dtype=torch.int64)
        for row, labels in zip(padded, maps, strict=True):
            row[: labels.shape[0], : labels.shape[1]] = labels
        return padded


def label_maps(outputs: PixelOutputs, metas: Sequence[Meta]) -> list[SemanticMap]:
    """Return the class of the largest logit at every pixel, in each image's original size."""
    maps = []
    for logits, meta in zip(outputs.logits, metas, strict=True):
        size = dict(input_size=outputs.input_size, crop=meta.unpadded_size, out=meta.orig_size)
        maps.append(SemanticMap(full_resolution_labels(logits, **size)))
    return maps


def graph_labels(scores: Tensor, input_size: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return (B, H, W) uint8 (int16 above 255 classes): the best class of `scores` (B, K, h, w), which cover
    `input_size` and there `extent` pixels, of which the upper left `size` are wanted. For exported graphs.
    """
    full = functional.interpolate(scores.float(), input_size, mode='bilinear', align_corners=False)
    if extent != input_size:
        full = functional.interpolate(full, extent, mode='bilinear', align_corners=False)
    labels = full[..., : size[0], : size[1]].argmax(1)
    return labels.to(torch.uint8 if scores.shape[1] <= 255 else torch.int16)


def _full(logits: Tensor, rows: Sequence[int], input_size: tuple[int, int], crop: Sequence[int]) -> Tensor:
    """Return the float32 logits of `rows` at every pixel of `crop`: (rows, K, H, W), a view of all logits.

    Without rows the result has no pixels but depends on all logits: every parameter gets a gradient, which is zero
    even where the logits are not finite.
    """
    if not rows:
        zeros = (logits.float().nan_to_num() * 0).sum((0, 2, 3))  # (K,)
        return zeros[None, :, None, None].expand(1, -1, 0, 0)
    chosen = logits if len(rows) == len(logits) else logits[list(rows)]
    full = functional.interpolate(chosen.float(), input_size, mode='bilinear', align_corners=False)
    return full[..., : crop[0], : crop[1]]


@torch.no_grad()
def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of right pixels among the labelled ones of a sparse grid; 0 where none is labelled."""
    labels = labels[:, ::ACCURACY_STEP, ::ACCURACY_STEP]
    right = logits[:, :, ::ACCURACY_STEP, ::ACCURACY_STEP].argmax(1) == labels
    return right.sum() / (labels != IGNORE).sum().clamp(min=1)  # the ignore value is no class: it is never right


def _parts(losses: Sequence[object | dict] | None) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
    parts = (CrossEntropy(),) if losses is None else tuple(build(part) for part in losses)
    names = [part.name for part in parts]
    why = 'it needs at least one loss, and every loss writes its own row in the log'
    fix = 'give one or more losses of different kinds, such as [CrossEntropy(), Dice()]'
    check(bool(parts) and len(set(names)) == len(names), 'SemanticTask.losses', names, why, fix)
    return parts
