"""Error of the patches that a masked autoencoder reconstructs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce

from vitdense.metrics.base import SingleHeadMetric
from vitdense.types import Batch, Prediction


class ReconstructionError(SingleHeadMetric):
    """Mean squared error of the masked patches of one head, over all images and ranks, as `<head>/error`.

    It is the training loss, on images that were not trained on. With normalised patches, predicting the mean of each
    patch gives 1, and a perfect reconstruction 0.
    """

    names = ('error',)

    def __init__(self, *, head: str = 'mae') -> None:
        super().__init__(head)
        self._total = torch.zeros(2, dtype=torch.float64)  # sum of the errors, number of images

    def process(self, data_batch: Batch, data_samples: Sequence[dict[str, Prediction]]) -> None:
        """Add up one batch."""
        for sample in data_samples:
            self._total += torch.tensor([float(sample[self.head].error), 1.0], dtype=torch.float64)

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum over ranks and return the score; then reset the sums. `size` is not needed: nothing is padded."""
        total = self._total.clone()
        all_reduce(total)  # every rank comes here, with or without images
        self._total.zero_()
        return self.prefixed({'error': float(total[0] / total[1])} if total[1] else {})
