"""Classification: one label, a mixture of labels, or several labels for a whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from vitdense.arguments import check, check_choice, label_source
from vitdense.ops.mixing import as_shares
from vitdense.tasks.losses import share_of_count
from vitdense.types import ClassOutputs, ImageClass, Meta, Target

Loss = Literal['cross_entropy', 'binary_cross_entropy']
_NAMES = {'cross_entropy': 'ce', 'binary_cross_entropy': 'bce'}


class ClassificationTask:
    """Train `ClassOutputs` on image labels, and read the scores of all classes from them.

    A label is a class number, or (K,) numbers in [0, 1]: the shares of a mixture (mixup, distillation), or a yes or no
    for each class. 'cross_entropy' is for one class, 'binary_cross_entropy' for any number of them: each class is a
    question of its own (also the loss of DeiT III, https://arxiv.org/abs/2204.07118, section 3).

    `label_smoothing` is the probability mass spread evenly over all K classes (Szegedy et al. 2016, section 7).
    `field` is the field of `Target` that holds the target; `datasets` names the data sets (`Meta.dataset`) whose
    images it trains on (None: all).

    Raises ConfigError for an unknown field or loss.
    """

    def __init__(
        self,
        *,
        field: str = 'image_label',
        datasets: Sequence[str] | None = None,
        loss: Loss = 'cross_entropy',
        label_smoothing: float = 0.0,
    ) -> None:
        check_choice('ClassificationTask.loss', loss, get_args(Loss))
        why = 'label smoothing is a share in [0, 1)'
        check(0 <= label_smoothing < 1, 'ClassificationTask.label_smoothing', label_smoothing, why)
        self.field, self.datasets = label_source('ClassificationTask', field, datasets)
        self.kind = loss
        self.label_smoothing = label_smoothing

    def loss(self, outputs: ClassOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return `loss_ce` or `loss_bce`, the mean over labelled images (of K questions), and `acc`.

        Images without a label are left out. `acc` is the share of images whose likeliest class is true; of a
        mixture its largest part is.
        """
        rows = [row for row, target in enumerate(targets) if target.value_of(self.field) is not None]
        with torch.autocast(outputs.logits.device.type, enabled=False):
            logits = outputs.logits.float()
            count = share_of_count(torch.tensor(len(rows), device=logits.device))  # every rank comes here
            name = f'loss_{_NAMES[self.kind]}'
            if not rows:  # zero, with a gradient for every parameter, even where the logits are not finite
                return {name: (logits.nan_to_num() * 0).sum(), 'acc': logits.new_zeros(())}
            logits = logits if len(rows) == len(logits) else logits[rows]
            shares = as_shares([targets[row].value_of(self.field) for row in rows], logits.shape[1])
            total = self._total(logits, shares)
        return {name: total / count, 'acc': _accuracy(logits, shares)}

    def predict(self, outputs: ClassOutputs, metas: Sequence[Meta]) -> list[ImageClass]:
        """Return the scores of all classes: softmax probabilities, or one probability for each yes or no."""
        return [ImageClass(row) for row in self._scores(outputs)]

    def graph_predictions(
        self, outputs: ClassOutputs, extent: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the scores (B, K), as `GraphTask` says."""
        return {'scores': self._scores(outputs)}

    def _scores(self, outputs: ClassOutputs) -> Tensor:
        logits = outputs.logits.float()
        return logits.softmax(1) if self.kind == 'cross_entropy' else logits.sigmoid()

    def _total(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Return the sum over images; `logits` and `shares` are (rows, K)."""
        if self.kind == 'cross_entropy':
            return functional.cross_entropy(logits, shares, reduction='sum', label_smoothing=self.label_smoothing)
        num_classes = logits.shape[1]
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        return functional.binary_cross_entropy_with_logits(logits, shares, reduction='sum') / num_classes


@torch.no_grad()
def _accuracy(logits: Tensor, shares: Tensor) -> Tensor:
    """Return the share of images whose likeliest class is among those of the largest share."""
    chosen = shares.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)  # (rows,)
    return ((chosen == shares.amax(1)) & (chosen > 0)).float().mean()
