"""Mean intersection over union, from exact counts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.dist import all_reduce, is_main_process
from torch import Tensor

from vitdense.arguments import check
from vitdense.errors import ConfigError, DataError
from vitdense.metrics.base import SingleHeadMetric
from vitdense.metrics.confusion import write_confusion
from vitdense.types import IGNORE, Batch, Prediction

logger = logging.getLogger('vitdense')
MAX_CLASSES = 8192  # their counts need 512 MiB
STRIPE = 2**24 - 1  # calcHist counts in float32, which is exact below 2**24 pixels per bin


class ClassScore(NamedTuple):
    """One row of the table. A score is None where it is not defined (0 / 0)."""

    name: str
    iou: float | None  # in [0, 1]; None: the class is neither in the targets nor predicted, or no other class is
    acc: (
        float | None
    )  # in [0, 1]; None: the class is not in the targets, or no other class is in targets or predictions
    pixels: int  # labelled pixels of this class


class MeanIoU(SingleHeadMetric):
    """mIoU, mAcc, mDice and aAcc of the label maps of one head, in [0, 1], under `<head>/<name>`.

    Counts are whole numbers over all images and ranks. A class that is neither in the targets nor predicted is left
    out of mIoU and mDice, a class that is not in the targets out of mAcc; the log names them. A class that the data set
    has no labels for is left out of all three. An image without target is skipped and counted. Where no pixel is
    labelled at all, or every labelled pixel is of one class and predicted so, there is no score but a warning: a
    second class is missing.

    `classes` are the names, by default those of the data set for `field`. `ignore` is the label that does not count.
    With `save_dir` the confusion matrix is saved there after each evaluation.
    """

    names = ('aAcc', 'mIoU', 'mAcc', 'mDice')  # what `evaluate` gives, so that a misspelt key is refused early

    def __init__(
        self,
        *,
        head: str = 'sem',
        field: str = 'semantic',
        classes: Sequence[str] | None = None,
        ignore: int = IGNORE,
        save_dir: str | Path | None = None,
    ) -> None:
        super().__init__(head, field, classes)
        self.ignore = ignore
        self.save_dir = save_dir
        self._counts: np.ndarray | None = None  # (K, K) int64 of this rank: [target, prediction]

    @property
    def classes(self) -> list[str]:
        """The names of the classes. Raises ConfigError when they are unknown, or too many to count."""
        names = super().classes
        why = f'a confusion matrix of 1 to {MAX_CLASSES:,} classes fits into memory'
        fix = 'give the classes of the label maps, one name for each'
        check(1 <= len(names) <= MAX_CLASSES, f'number of classes of {self.head}', len(names), why, fix)
        return names

    def process(self, data_batch: Batch, data_samples: Sequence[dict[str, Prediction]]) -> None:
        """Count one batch: `data_samples[i][head].labels` against `data_batch.targets[i]`."""
        for target, meta, sample in zip(data_batch.targets, data_batch.metas, data_samples, strict=True):
            targets = target.value_of(self.field)
            if targets is None:
                self._skipped += 1
                continue
            where = meta.path or f'image {meta.image_id}'
            counts = count_pairs(targets, sample[self.head].labels, len(self.classes), ignore=self.ignore, where=where)
            self._counts = counts if self._counts is None else self._counts + counts

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum over ranks and return the scores; then reset the counts. `size` is not needed: nothing is padded."""
        num_classes = len(self.classes)
        counts = np.zeros((num_classes, num_classes), np.int64) if self._counts is None else self._counts
        total = torch.from_numpy(np.append(counts, self._skipped))
        all_reduce(total)  # every rank comes here, with or without images
        self._counts, self._skipped = None, 0
        self._confusion, skipped = total[:-1].reshape(num_classes, num_classes), int(total[-1])
        scores = self.compute_metrics([])
        if is_main_process():
            self._report(skipped)
            if self.save_dir is not None:
                self.save_confusion(self.save_dir)
        return self.prefixed(scores)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the scores of `confusion`; nothing where fewer than two classes are labelled or predicted."""
        hits, true, predicted = _margins(self.confusion)
        present = true + predicted > 0
        if not true.sum() or present.sum() < 2:
            return {}
        present &= self._labelled()
        return {
            'aAcc': float(hits.sum() / true.sum()),
            'mIoU': float((hits / (true + predicted - hits))[present].mean()),
            'mAcc': float((hits / true)[true > 0].mean()),
            'mDice': float((2 * hits / (true + predicted))[present].mean()),
        }

    def _labelled(self) -> Tensor:
        """Return (K,) bool: the classes that the data set can label; False for those of a trained model that is
        evaluated on data with some of its classes.
        """
        names = ((self.dataset_meta or {}).get('labelled') or {}).get(self.field)
        return torch.tensor([names is None or name in names for name in self.classes])

    def table(self) -> list[ClassScore]:
        """Return one row for each class, in the order of the classes."""
        hits, true, predicted = (margin.tolist() for margin in _margins(self.confusion))
        unions = [t + p - h for h, t, p in zip(hits, true, predicted, strict=True)]
        if sum(union > 0 for union in unions) < 2:  # a single class
            return [ClassScore(name, None, None, int(pixels)) for name, pixels in zip(self.classes, true, strict=True)]
        return [
            ClassScore(name, hit / union if union else None, hit / pixels if pixels else None, int(pixels))
            for name, hit, pixels, union in zip(self.classes, hits, true, unions, strict=True)
        ]

    def save_confusion(self, folder: str | Path, *, stem: str = 'confusion') -> None:
        """Write `<stem>.npy`, `<stem>.csv` (rows: targets) and `<stem>.png` into `folder`."""
        write_confusion(self.confusion.numpy(), self.classes, folder, stem=stem)

    def _report(self, skipped: int) -> None:
        rows = self.table()
        absent = [row.name for row in rows if row.iou is None]
        self.warn_skipped(skipped)
        if not any(row.pixels for row in rows):
            logger.warning('%s: n/a, no pixel is labelled', self.prefix)
        elif len(absent) == len(rows):
            only = next(row.name for row in rows if row.pixels)
            text = '%s: n/a, every labelled pixel is %s and predicted so: without a second class there is no score'
            logger.warning(text, self.prefix, only)
        elif absent:
            text = f'{len(absent)} of {len(rows)} classes are neither labelled nor predicted and left out of the means'
            logger.info('%s: %s: %s', self.prefix, text, ', '.join(absent))


def count_pairs(
    targets: Tensor, labels: Tensor, num_classes: int, *, ignore: int = IGNORE, where: str = ''
) -> np.ndarray:
    """Return (K, K) int64: how many pixels of each class of `targets (H, W)` are given each class by `labels (H, W)`.

    Pixels whose target is `ignore` do not count. Raises DataError for a target outside [0, K), and ConfigError for a
    prediction outside it or of another size; `where` names the image in the message.
    """
    if targets.shape != labels.shape:
        raise ConfigError(
            f'the prediction has {tuple(labels.shape)} pixels and the target has {tuple(targets.shape)}',
            where=where,
            why='predictions are made in the original size of the image, so the target must keep that size',
            fix='let the transforms of evaluation change only the image, not the label map',
        )
    target_map, label_map = targets.cpu().numpy(), labels.cpu().numpy()
    if target_map.dtype == label_map.dtype == np.uint8:
        pairs = _count_bytes(target_map, label_map)
        if 0 <= ignore < len(pairs):
            pairs[ignore] = 0
        if pairs[num_classes:].any():
            _refuse_targets(num_classes + np.flatnonzero(pairs[num_classes:].sum(1)), num_classes, ignore, where)
        if pairs[:, num_classes:].any():
            _refuse_labels(num_classes + np.flatnonzero(pairs[:, num_classes:].sum(0)), num_classes, where)
    else:
        pairs = _count_codes(target_map, label_map, num_classes, ignore, where)
    counts = np.zeros((num_classes, num_classes), np.int64)
    side = min(len(pairs), num_classes)
    counts[:side, :side] = pairs[:side, :side]
    return counts


def _count_bytes(targets: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (256, 256) int64 counts of two uint8 maps. cv2 counts them several times faster than numpy."""
    targets, labels = np.ascontiguousarray(targets).reshape(1, -1), np.ascontiguousarray(labels).reshape(1, -1)
    total = np.zeros((256, 256), np.int64)
    for start in range(0, targets.size, STRIPE):
        maps = [targets[:, start : start + STRIPE], labels[:, start : start + STRIPE]]
        total += cv2.calcHist(maps, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    return total


def _count_codes(targets: np.ndarray, labels: np.ndarray, num_classes: int, ignore: int, where: str) -> np.ndarray:
    """Return (K, K) int64 counts of two integer maps. Values are checked before anything of their size is made."""
    valid = targets != ignore
    targets, labels = targets[valid].astype(np.int64), labels[valid].astype(np.int64)
    for values, refuse in ((targets, partial(_refuse_targets, ignore=ignore)), (labels, _refuse_labels)):
        invalid = np.unique(values[(values < 0) | (values >= num_classes)])
        if len(invalid):
            refuse(invalid, num_classes, where=where)
    return np.bincount(targets * num_classes + labels, minlength=num_classes**2).reshape(num_classes, num_classes)


def _refuse_targets(values: np.ndarray, num_classes: int, ignore: int, where: str) -> None:
    file = f'{Path(where).name}: ' if where else ''
    raise DataError(
        f'{file}labels {values[:10].tolist()} are not in 0..{num_classes - 1} or ignore {ignore}',
        where=where,
        why=f'the metric has {num_classes} classes' + (', and no class is negative' if values.min() < 0 else ''),
        fix='check the label map and the class names of the data set',
    )


def _refuse_labels(values: np.ndarray, num_classes: int, where: str) -> None:
    raise ConfigError(
        f'predicted classes {values[:10].tolist()} are not in 0..{num_classes - 1}',
        where=where,
        why=f'the model has more classes than the {num_classes} of the data set under test',
        fix='test on a data set with the classes that the model was trained on',
    )


def _margins(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the right, the true and the predicted pixels of each class: three (K,) float64."""
    counts = confusion.double()  # exact below 2**53 pixels
    return counts.diagonal(), counts.sum(1), counts.sum(0)
