"""Losses of labelled pixels, as small parts that a task adds up.

A part is called with float32 `logits (B, K, H, W)` and int64 `labels (B, H, W)` in [0, K) or IGNORE, and gives one
number. Its `name` is the last part of its key in the log (`loss_ce`). A batch without one labelled pixel gives exactly
0, and a gradient that is 0 for every logit. What a part divides by is summed over all ranks, so that the mean of the
gradients over ranks is the gradient of the one big batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from vitdense.arguments import check, check_choice, check_ranges
from vitdense.types import IGNORE


def share_of_count(count: Tensor) -> Tensor:
    """Return what this rank divides by: the sum of `count` over all ranks, at least 1, divided by their number.

    Every rank must call it, in the same order, whatever it has seen: it is a collective operation.
    """
    count = count.detach().double()
    world_size = 1
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        world_size = distributed.get_world_size()
    count = torch.where(count > 0, count, 1)  # nothing labelled anywhere: 0 / 1, not 0 / 0
    return (count / world_size).float()


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The negative log-likelihood of the label under a softmax over classes.

    `class_weights` multiply the pixels of each class. `average` says what the sum is divided by: the labelled pixels
    (each counted with its class weight, as torch does), or 'all' pixels, ignored ones included, as mmsegmentation
    does by default. `label_smoothing` is the probability mass spread evenly over all classes (Szegedy et al. 2016,
    section 7).
    """

    name: ClassVar[str] = 'ce'
    weight: float = 1.0
    class_weights: Sequence[float] | None = None
    average: Literal['valid', 'all'] = 'valid'
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_choice('CrossEntropy.average', self.average, ('valid', 'all'))
        check_ranges(self, ('label_smoothing',), 0.0, 1.0)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = _weights_of_classes(self.class_weights, logits)
        total = functional.cross_entropy(
            logits, labels, weights, ignore_index=IGNORE, reduction='sum', label_smoothing=self.label_smoothing
        )
        return self.weight * total / share_of_count(self._count(labels, weights))

    def _count(self, labels: Tensor, weights: Tensor | None) -> Tensor:
        if self.average == 'all':
            return torch.tensor(labels.numel(), device=labels.device)
        valid = labels != IGNORE
        if weights is None:
            return valid.sum()
        return (weights.double()[labels.where(valid, 0)] * valid).sum()


@dataclass(frozen=True, kw_only=True)
class Dice:
    """One minus the Dice coefficient of softmax probabilities p and one-hot labels g, averaged over classes.

        1 - (2 * sum(p * g) + smooth) / (sum(p ** exponent) + sum(g) + smooth)

    The sums run over the labelled pixels of each image, or of the whole batch (`over`). `exponent` 2 is the form
    of Milletari et al. 2016 (V-Net, section 3). Only classes that occur in the labels count, unless `absent` is
    True: then a class that is not there costs what is predicted of it.
    """

    name: ClassVar[str] = 'dice'
    weight: float = 1.0
    smooth: float = 1.0
    exponent: Literal[1, 2] = 1
    over: Literal['image', 'batch'] = 'image'
    absent: bool = False

    def __post_init__(self) -> None:
        check_choice('Dice.exponent', self.exponent, (1, 2))
        check_choice('Dice.over', self.over, ('image', 'batch'))
        check_ranges(self, ('smooth',), 0.0)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.flatten(1)  # (B, H, W) -> (B, N)
        valid = (labels != IGNORE).float()
        known = labels.where(labels != IGNORE, 0)
        probs = logits.flatten(2).softmax(1)  # (B, K, H, W) -> (B, K, N)
        hits = probs.gather(1, known[:, None]).squeeze(1) * valid  # (B, N) the probability of each true label
        blank = probs.new_zeros(probs.shape[:2])  # (B, K)
        overlap = blank.scatter_add(1, known, hits)
        true = blank.scatter_add(1, known, valid)
        mass = torch.bmm(probs.pow(self.exponent), valid[:, :, None]).squeeze(2)  # (B, K)
        if self.over == 'batch':
            overlap, true, mass = overlap.sum(0), true.sum(0), mass.sum(0)
        coefficient = (2 * overlap + self.smooth) / (mass + true + self.smooth).clamp(min=1e-6)
        labelled = true.sum(-1, keepdim=True) > 0  # an image without labels does not count
        counted = (labelled if self.absent else true > 0).expand_as(true)
        total = torch.where(counted, 1 - coefficient, 0).sum()
        return self.weight * total / share_of_count(counted.sum())


@dataclass(frozen=True, kw_only=True)
class PixelFocal:
    """Focal loss of pixels: down-weights easy ones; averaged over the labelled ones.

    `-alpha_t * (1 - p_t) ** gamma * log(p_t)`: Lin et al. 2017 (RetinaNet), equation 5. In the 'sigmoid' form every
    class is a binary classification, their losses are summed, and `alpha` weighs positives against negatives
    (alpha, 1 - alpha); in the 'softmax' form p_t is the probability of the label and `alpha` multiplies all of it. None
    leaves alpha out.
    """

    name: ClassVar[str] = 'focal'
    weight: float = 1.0
    gamma: float = 2.0
    alpha: float | None = None
    form: Literal['softmax', 'sigmoid'] = 'softmax'

    def __post_init__(self) -> None:
        check_choice('PixelFocal.form', self.form, ('softmax', 'sigmoid'))
        check_ranges(self, ('gamma',), 0.0)
        if self.alpha is not None:
            check_ranges(self, ('alpha',), 0.0, 1.0)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        valid = labels != IGNORE
        if self.form == 'sigmoid':
            classes = torch.arange(logits.shape[1], device=labels.device)
            one_hot = (labels[:, None] == classes[:, None, None]).to(logits.dtype)  # (B, K, H, W)
            alpha = -1 if self.alpha is None else self.alpha
            pixels = sigmoid_focal_loss(logits, one_hot, alpha=alpha, gamma=self.gamma).sum(1)  # (B, H, W)
        else:
            nll = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction='none')  # (B, H, W)
            # away from 0 the power has a finite slope for every gamma, at a negligible difference
            miss = (-torch.expm1(-nll)).clamp(min=1e-8)
            pixels = (1.0 if self.alpha is None else self.alpha) * miss.pow(self.gamma) * nll
        return self.weight * torch.where(valid, pixels, 0).sum() / share_of_count(valid.sum())


@dataclass(frozen=True, kw_only=True)
class OhemCrossEntropy:
    """Cross-entropy of the hard pixels only (Shrivastava et al. 2016, online hard example mining).

    A pixel is hard when the probability of its label is below `threshold`. At least `min_kept` pixels per image
    are kept, counted over the whole batch: the threshold rises until `min_kept * B` pixels lie below it. `average`
    divides by the kept pixels, or by 'all' pixels, as mmsegmentation does.
    """

    name: ClassVar[str] = 'ohem'
    weight: float = 1.0
    threshold: float = 0.7
    min_kept: int = 100_000
    class_weights: Sequence[float] | None = None
    average: Literal['kept', 'all'] = 'kept'

    def __post_init__(self) -> None:
        check_choice('OhemCrossEntropy.average', self.average, ('kept', 'all'))
        check_ranges(self, ('threshold',), 0.0, 1.0)
        check_ranges(self, ('min_kept',), 0)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        nll = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction='none')  # (B, H, W)
        kept = self._hard(nll.detach(), labels != IGNORE)
        pixels = torch.where(kept, nll, 0)
        weights = _weights_of_classes(self.class_weights, logits)
        if weights is not None:
            pixels = pixels * weights[labels.where(kept, 0)]
        count = kept.sum() if self.average == 'kept' else torch.tensor(labels.numel(), device=labels.device)
        return self.weight * pixels.sum() / share_of_count(count)

    def _hard(self, nll: Tensor, valid: Tensor) -> Tensor:
        """Return (B, H, W) bool: the pixels that count. It never waits for the device."""
        easy = 2.0  # above every probability: where fewer than min_kept pixels have a label, all of them are kept
        probs = torch.where(valid, torch.exp(-nll), easy)
        rank = self.min_kept * len(probs) + 1
        bound = probs.flatten().kthvalue(rank).values if rank <= probs.numel() else probs.new_tensor(easy)
        return valid & (probs < bound.clamp(min=self.threshold))


def _weights_of_classes(weights: Sequence[float] | None, logits: Tensor) -> Tensor | None:
    if weights is None:
        return None
    count = logits.shape[1]
    why = f'every one of the {count} classes needs its own weight, in the order of the class names'
    check(len(weights) == count, 'class_weights', weights, why, f'give {count} numbers, or leave class_weights out')
    return logits.new_tensor(weights)
