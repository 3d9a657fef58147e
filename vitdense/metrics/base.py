"""The base of the metrics: one head, one field of the targets, and sums over all ranks instead of collected results."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from vitdense.errors import ConfigError, NumericsError, some
from vitdense.protocols import OperatingPointMetric
from vitdense.types import Meta, Prediction

logger = logging.getLogger('vitdense')


def operating_points_of(metrics: Iterable[Any]) -> dict[str, Any]:
    """Return the score thresholds that metrics found in their last evaluation, `{head: points}`."""
    able = [metric for metric in metrics if isinstance(metric, OperatingPointMetric)]
    return {metric.head: points for metric in able if (points := metric.operating_points())}


def refuse_non_finite_predictions(samples: Sequence[Mapping[str, Prediction]], metas: Sequence[Meta]) -> None:
    """Raise NumericsError, with head and image, where a prediction of a batch is not finite.

    Label maps and masks are no floating-point numbers: their tasks check the logits.
    """
    checks = [
        (f'{head}.{name}', value.isfinite().all(), meta)
        for sample, meta in zip(samples, metas, strict=True)
        for head, prediction in sample.items()
        for name, value in prediction._asdict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    finite = torch.stack([each for _, each, _ in checks]).tolist() if checks else []  # waits once for the device
    odd = [(name, meta) for (name, _, meta), good in zip(checks, finite, strict=True) if not good]
    if odd:
        raise NumericsError(
            f'predictions that are not finite: {some(sorted({name for name, _ in odd}))}',
            where=odd[0][1].path or f'image {odd[0][1].image_id}',
            why='no score can be computed from NaN or infinite values',
            fix='test an earlier checkpoint of the run, or with --amp off',
        )


class SingleHeadMetric(BaseMetric):
    """A metric of the predictions of `head` for `field` of the targets, logged as `<prefix>/<name>`.

    `classes` are the names, by default those of the data set for `field`; `prefix` is the head unless given. `evaluate`
    takes no number of images: batches are not padded.
    """

    def __init__(
        self, head: str, field: str = '', classes: Sequence[str] | None = None, *, prefix: str | None = None
    ) -> None:
        super().__init__(prefix=prefix or head)
        self.head, self.field = head, field
        self._classes = None if classes is None else list(classes)
        self._skipped = 0  # images without a target
        self._confusion: Tensor | None = None

    @property
    def classes(self) -> list[str]:
        """The names of the classes. Raises ConfigError when neither the config nor the data set gives them."""
        if self._classes is not None:
            return self._classes
        known = (self.dataset_meta or {}).get('classes', {})
        if self.field not in known:
            name = type(self).__name__
            raise ConfigError(
                f"{name} does not know the classes of '{self.field}'",
                where=f"{name}(head='{self.head}')",
                why=f"metainfo['classes'] of the data set names {sorted(known) or 'nothing'}",
                fix=f'give classes=[...] to {name}, or a data set whose metainfo has them',
            )
        return list(known[self.field])

    @property
    def confusion(self) -> Tensor:
        """(K, K) int64 counts by [target, prediction] of the last evaluation."""
        if self._confusion is None:
            raise RuntimeError('there is no confusion matrix before the first evaluate()')
        return self._confusion

    def prefixed(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return `scores` under the names of the log."""
        return {f'{self.prefix}/{name}': value for name, value in scores.items()}

    def warn_skipped(self, count: int) -> None:
        """Log how many images had no target."""
        if count:
            logger.warning('%s: skipped without target: %d of the images', self.prefix, count)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return nothing: `evaluate` does without mmengine's collected results."""
        return {}
