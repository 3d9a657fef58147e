"""Accuracy of a classifier, overall and by class, and its calibration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, is_main_process
from torch import Tensor

from vitdense.errors import ConfigError
from vitdense.metrics.base import SingleHeadMetric
from vitdense.metrics.confusion import write_confusion
from vitdense.metrics.operating_points import describe_points
from vitdense.types import Batch, Prediction

logger = logging.getLogger('vitdense')
LONGEST = 100  # classes in a table; of more, only the worst are listed
WORST = 30


class ClassAccuracy(NamedTuple):
    """One row of the table."""

    name: str
    acc: float | None  # in [0, 1]; None: no image of this class
    images: int  # of this class


class Accuracy(SingleHeadMetric):
    """Accuracy and calibration of the scores of one head, in [0, 1], under `<head>/<name>`.

    * top1, top5: the share of images whose class is the best scored, or among the best five (of 6 classes or more);
    * mean_class: the mean of the accuracies of the classes that occur;
    * ece: the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3): the mean
      distance between score and accuracy over `bins` equal ranges of the best score, weighted by their images.

    Counts are over all images and ranks. An image without target is skipped and counted; of a mixture of labels the
    largest counts. `classes` are the names, by default those of the data set for `field`. With `save_dir` the
    confusion matrix is saved there after each evaluation.
    """

    names = ('top1', 'top5', 'mean_class', 'ece')  # what `evaluate` gives, so that a misspelt key is refused early

    def __init__(
        self,
        *,
        head: str = 'cls',
        field: str = 'image_label',
        classes: Sequence[str] | None = None,
        bins: int = 15,
        save_dir: str | Path | None = None,
    ) -> None:
        super().__init__(head, field, classes)
        self.bins = bins
        self.save_dir = save_dir
        self._targets: list[int] = []  # of this rank
        self._ranked: list[Tensor] = []  # (5,) classes, best first
        self._scores: list[float] = []  # of the best class
        self._calibration = torch.zeros(3, bins, dtype=torch.float64)  # by range: images, sum of scores, hits
        self._five = 0
        self._judged: tuple[np.ndarray, ...] | None = None  # best class, its score, target of all images

    def process(self, data_batch: Batch, data_samples: Sequence[dict[str, Prediction]]) -> None:
        """Note one batch: `data_samples[i][head].scores` against `data_batch.targets[i]`."""
        for target, meta, sample in zip(data_batch.targets, data_batch.metas, data_samples, strict=True):
            label = target.value_of(self.field)
            if label is None:
                self._skipped += 1
                continue
            where = meta.path or f'image {meta.image_id}'
            scores = sample[self.head].scores.float().cpu()
            self._check_scores(scores, where)
            best = scores.topk(min(5, len(scores)))
            self._targets.append(self._number(label, where))
            self._ranked.append(best.indices)
            self._scores.append(float(best.values[0]))

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum over ranks and return the scores; then discard the images. `size` is not needed: nothing is padded."""
        counts, five, calibration = self._counts()
        best = [int(ranked[0]) for ranked in self._ranked]
        shares = all_gather_object((best, self._scores, self._targets))
        self._judged = tuple(np.array(sum(column, [])) for column in zip(*shares, strict=True))
        total = torch.cat([counts.flatten(), calibration.flatten(), torch.tensor([five, self._skipped])])
        all_reduce(total)  # every rank comes here, with or without images
        self._targets, self._ranked, self._scores, self._skipped = [], [], [], 0
        self._confusion = total[: counts.numel()].long().reshape(counts.shape)
        self._calibration = total[counts.numel() : -2].reshape(3, self.bins)
        self._five, skipped = int(total[-2]), int(total[-1])
        scores = self.compute_metrics([])
        if is_main_process():
            self.warn_skipped(skipped)
            if not scores:
                logger.warning('%s: n/a, no image is labelled', self.prefix)
            if int((self._confusion.sum(1) > 0).sum()) > LONGEST:
                logger.info('%s: the table lists the %d classes that are least often right', self.prefix, WORST)
            if self.save_dir is not None:
                self.save_confusion(self.save_dir)
        return self.prefixed(scores)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the scores of the last evaluation, or nothing when no image is labelled."""
        images = self.confusion.sum(1).double()
        if not images.sum():
            return {}
        hits, total = self.confusion.diagonal().double(), images.sum()
        _, confidence, right = self._calibration
        scores = {'top1': float(hits.sum() / total)}
        if len(self.classes) > 5:
            scores['top5'] = float(self._five / total)
        scores['mean_class'] = float((hits / images)[images > 0].mean())
        scores['ece'] = float((confidence - right).abs().sum() / total)
        return scores

    def operating_points(self) -> dict[str, Any]:
        """Return the thresholds of best F1 in the last evaluation (`describe_points`), of the best class alone."""
        if self._judged is None or not len(self._judged[0]):
            return {}
        labels, scores, targets = self._judged
        return describe_points(scores, labels == targets, labels, self.confusion.sum(1).tolist())

    def table(self) -> list[ClassAccuracy]:
        """Return one row for each class, in the order of the classes.

        Of more than 100 classes: those that occur, and of more than 100 of them the 30 that are least often right.
        """
        counts = zip(self.classes, self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist(), strict=True)
        rows = [ClassAccuracy(name, hits / total if total else None, total) for name, hits, total in counts]
        if len(rows) > LONGEST:
            rows = [row for row in rows if row.images]
        return rows if len(rows) <= LONGEST else sorted(rows, key=lambda row: row.acc)[:WORST]

    def save_confusion(self, folder: str | Path, *, stem: str = '') -> None:
        """Write `<stem>.npy`, `<stem>.csv` (rows: targets) and `<stem>.png` into `folder`; default: confusion_HEAD."""
        stem = stem or f'confusion_{self.head}'
        write_confusion(self.confusion.numpy(), self.classes, folder, stem=stem, what='images')

    def _counts(self) -> tuple[Tensor, int, Tensor]:
        """Return of this rank: (K, K) images; how often the five best are right; (3, bins) sums of 1, score, hit."""
        num_classes = len(self.classes)
        targets = torch.tensor(self._targets, dtype=torch.int64)
        ranked = torch.stack(self._ranked) if self._ranked else targets.new_zeros(0, 1)
        scores = torch.tensor(self._scores, dtype=torch.float64)
        hit = ranked[:, 0] == targets
        # a score on the border of two ranges belongs to the lower one
        bin_index = (scores * self.bins).ceil().long().clamp(1, self.bins) - 1
        codes = targets * num_classes + ranked[:, 0]
        calibration = [
            torch.bincount(bin_index, weights, self.bins) for weights in (torch.ones_like(scores), scores, hit.double())
        ]
        counts = torch.bincount(codes, minlength=num_classes**2).reshape(num_classes, num_classes)
        five = int((ranked == targets[:, None]).any(1).sum())
        return counts.double(), five, torch.stack(calibration)

    def _number(self, label: Tensor, where: str) -> int:
        """Return the class of a label: itself, or the largest share. Raises ConfigError for several classes."""
        if label.ndim and (label == label.max()).sum() != 1:
            raise ConfigError(
                'a label with several classes, or none',
                where=where,
                why='accuracy compares one class with one class',
                fix='evaluate images with several labels with vitdense.metrics.multilabel.MeanPrecision',
            )
        number = int(label.argmax() if label.ndim else label)
        if not 0 <= number < len(self.classes):
            raise ConfigError(
                f'the label {number} is not in 0..{len(self.classes) - 1}',
                where=where,
                why=f'the metric has {len(self.classes)} classes',
                fix='check the labels and the class names of the data set',
            )
        return number

    def _check_scores(self, scores: Tensor, where: str) -> None:
        if len(scores) != len(self.classes):
            raise ConfigError(
                f'the model gives {len(scores)} scores and the data set has {len(self.classes)} classes',
                where=where,
                why='score k is that of class k',
                fix='test on a data set with the classes that the model was trained on',
            )
