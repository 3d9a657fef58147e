"""How well a classifier ranks images that have several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from vitdense.metrics.base import SingleHeadMetric
from vitdense.types import Batch, Prediction
from vitdense.visualize.colors import names_of


class ClassPrecision(NamedTuple):
    """One row of the table."""

    name: str
    ap: float | None  # in [0, 1]; None: no image of this class
    images: int  # that have this class


class MeanPrecision(SingleHeadMetric):
    """Mean average precision of the scores of one head over classes, in [0, 1], as `<head>/mAP`.

    The average precision of a class is the mean, over the images that have it, of the precision among all images
    scored at least as high (PASCAL VOC from 2010 on, without interpolation). Classes that no image has are left out.
    A label is (K,), where above 0.5 means yes; a class number is that class alone.
    """

    names = ('mAP',)

    def __init__(self, *, head: str = 'cls', field: str = 'image_label') -> None:
        super().__init__(head, field)
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (K,) scores and (K,) bool targets, of this rank
        self._table: list[ClassPrecision] = []

    def process(self, data_batch: Batch, data_samples: Sequence[dict[str, Prediction]]) -> None:
        """Note one batch: `data_samples[i][head].scores` against `data_batch.targets[i]`; without target nothing."""
        for target, sample in zip(data_batch.targets, data_samples, strict=True):
            label = target.value_of(self.field)
            if label is None:
                continue
            scores = sample[self.head].scores.float().cpu()
            numbers = torch.arange(len(scores))
            self._pairs.append((scores, label.cpu() > 0.5 if label.ndim else numbers == label.cpu()))

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather from all ranks and return the mean; then discard the images."""
        mine = tuple(torch.stack(part) for part in zip(*self._pairs, strict=True)) if self._pairs else None
        self._pairs = []
        parts = [part for part in all_gather_object(mine) if part is not None]
        self._table = self._rows(*(torch.cat(part) for part in zip(*parts, strict=True))) if parts else []
        scores = self.compute_metrics([])
        return self.prefixed(scores)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the mean over the classes of the last evaluation, or nothing when no image has any."""
        known = [row.ap for row in self._table if row.ap is not None]
        return {'mAP': sum(known) / len(known)} if known else {}

    def table(self) -> list[ClassPrecision]:
        """Return one row for each class of the last evaluation."""
        return self._table

    def _rows(self, scores: Tensor, targets: Tensor) -> list[ClassPrecision]:
        names = names_of(self.dataset_meta or {}, self.field, at_least=scores.shape[1])
        return [
            ClassPrecision(name, average_precision(scores[:, index], targets[:, index]), int(targets[:, index].sum()))
            for index, name in enumerate(names[: scores.shape[1]])
        ]


def average_precision(scores: Tensor, targets: Tensor) -> float | None:
    """Return the average precision of (N,) scores, equal ones together, for (N,) bool targets. None: no target."""
    if not targets.any():
        return None
    values, inverse = scores.unique(return_inverse=True)  # ascending
    num_values = len(values)
    hits = torch.bincount(inverse, targets.double(), num_values).flip(0)
    retrieved = torch.bincount(inverse, minlength=num_values).flip(0)
    precision = hits.cumsum(0) / retrieved.cumsum(0)
    return float((precision * hits).sum() / hits.sum())
