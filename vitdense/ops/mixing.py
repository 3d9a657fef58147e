"""Mixed training images: mixup, CutMix and random erasing of a whole batch, on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from vitdense.arguments import check
from vitdense.types import Batch, Target


class ImageMixing:
    """Mixup, CutMix and random erasing for images with only an image label; labels become soft, (K,).

    `mixup` and `cutmix` are the alphas of the two mixtures (https://arxiv.org/abs/1710.09412 and
    https://arxiv.org/abs/1905.04899; 0: never), of which each group of equal-sized images gets one with
    `probability`; `cutmix_share` is how often it is CutMix where both are on. `erase` is the probability that a
    rectangle of an image becomes noise of the normalised pixels' mean and spread (https://arxiv.org/abs/1708.04896;
    2 to 33 % of the area). Erasing comes first. Images with boxes, masks or maps stay as they are.

    Called by the `Preprocessor` on normalised training batches. The transforms are torchvision's; random numbers come
    from torch's global generator, which every training step seeds. Raises ConfigError for values that cannot be.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        probability: float = 1.0,
        cutmix_share: float = 0.5,
        erase: float = 0.0,
    ) -> None:
        shares = dict(probability=probability, cutmix_share=cutmix_share, erase=erase)
        wrong = [name for name, value in shares.items() if not 0 <= value <= 1]
        wrong += [name for name, value in dict(mixup=mixup, cutmix=cutmix).items() if value < 0]
        why = 'alphas are at least 0, probabilities and shares lie in [0, 1]'
        fix = 'the recipe of DeiT and MAE is mixup=0.8, cutmix=1.0, erase=0.25'
        for name in wrong:
            check(False, f'ImageMixing.{name}', dict(shares, mixup=mixup, cutmix=cutmix)[name], why, fix)
        self.num_classes = num_classes
        self.probability = probability
        kinds = {v2.MixUp: (mixup, 1 - cutmix_share), v2.CutMix: (cutmix, cutmix_share)}
        used = [(kind(alpha=alpha), share) for kind, (alpha, share) in kinds.items() if alpha > 0]
        self._mixtures = [mixture for mixture, _ in used]
        self._shares = torch.tensor([share for _, share in used] if len(used) > 1 else [1.0] * len(used))
        ratio = (0.3, 1 / 0.3)
        self._erase = v2.RandomErasing(p=erase, scale=(0.02, 1 / 3), ratio=ratio, value='random') if erase else None

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with mixed images and labels; `imgs` is (B, 3, H, W) float, normalised."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, (target, meta) in enumerate(zip(batch.targets, batch.metas, strict=True)):
            if _only_a_label(target):
                groups.setdefault(meta.size, []).append(row)
        imgs, targets = batch.imgs.clone() if groups else batch.imgs, list(batch.targets)
        for (height, width), rows in groups.items():
            window = imgs[rows, :, :height, :width]  # without padding
            window, labels = self._mix(self._erased(window), [targets[row].image_label for row in rows])
            imgs[rows, :, :height, :width] = window
            for row, label in zip(rows, labels, strict=True):
                targets[row] = Target(image_label=label)
        return batch._replace(imgs=imgs, targets=targets)

    def _erased(self, imgs: Tensor) -> Tensor:
        if self._erase is None:
            return imgs
        return torch.stack([self._erase(img) for img in imgs])

    def _mix(self, imgs: Tensor, labels: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """Mix each image with its neighbour in the batch, or not at all."""
        if not self._mixtures or len(imgs) < 2 or torch.rand(()).item() >= self.probability:
            return imgs, labels
        mixture = self._mixtures[int(torch.multinomial(self._shares, 1))]
        imgs, mixed = mixture(imgs, as_shares(labels, self.num_classes))
        return imgs, mixed.unbind()


def as_shares(labels: Sequence[Tensor], num_classes: int) -> Tensor:
    """Return image labels, each a class number () or the shares (K,), as (N, K) float32.

    Raises ValueError for shares of another number of classes.
    """
    if all(label.ndim == 0 for label in labels):
        return functional.one_hot(torch.stack(list(labels)).long(), num_classes).float()
    for label in labels:
        if label.ndim and label.shape != (num_classes,):
            raise ValueError(f'a label of shape {tuple(label.shape)} for {num_classes} classes')
    return torch.stack([label.float() if label.ndim else as_shares([label], num_classes)[0] for label in labels])


def _only_a_label(target: Target) -> bool:
    return target.image_label is not None and all(
        value is None for name, value in target._asdict().items() if name != 'image_label'
    )
