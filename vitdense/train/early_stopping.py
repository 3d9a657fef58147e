"""The end of a run whose validations no longer improve."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vitdense.reporting.history import check_metric, mean_of, metric_names

logger = logging.getLogger('vitdense')


class EarlyStopping:
    """Ends a run when `monitor` has not improved by more than `min_delta` in `patience` validations in a row.

    `monitor` is a metric, or a list of metrics whose mean counts.
    """

    def __init__(
        self,
        monitor: str | Sequence[str],
        *,
        rule: Literal['greater', 'less'] = 'greater',
        patience: int = 5,
        min_delta: float = 0.0,
    ) -> None:
        self.monitor = metric_names(monitor)
        self.sign = 1 if rule == 'greater' else -1
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.waited = 0  # validations without improvement

    def is_over(self, metrics: Mapping[str, Any]) -> bool:
        """Return whether the run ends with a validation of these scores. Raises ConfigError without the metric."""
        for key in self.monitor:
            check_metric(key, metrics, where='early_stopping.monitor')
        value = mean_of(self.monitor, metrics)
        if value is not None and (self.best is None or self.sign * (value - self.best) > self.min_delta):
            self.best, self.waited = value, 0
            return False
        self.waited += 1
        if self.waited >= self.patience:
            logger.info('%s has not improved in %d validations: stopping', ', '.join(self.monitor), self.waited)
        return self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """Return its state for a checkpoint."""
        return {'early_stopping': {'best': self.best, 'waited': self.waited}}

    def restore(self, checkpoint: Mapping[str, Any]) -> bool:
        """Go on from a checkpoint; return whether that run was over, but for its last files."""
        kept = checkpoint.get('early_stopping', {})
        self.best, self.waited = kept.get('best'), kept.get('waited', 0)
        return self.waited >= self.patience
