"""Average precision of detections by COCO's rules."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from torch import Tensor

from vitdense.arguments import check, check_choice
from vitdense.errors import ConfigError, DataError, NumericsError
from vitdense.metrics.base import SingleHeadMetric
from vitdense.metrics.coco_columns import Objects, category_ids, encode, merge, prediction_columns, target_columns
from vitdense.metrics.coco_curves import LIMIT, NUMBERS, Curves, Engine, IouType, choose_engine, make_curves
from vitdense.metrics.operating_points import describe_points, match
from vitdense.types import Batch, Instances, Meta, Prediction, Target

logger = logging.getLogger('vitdense')


class ClassAP(NamedTuple):
    """One row of the table. A score is None for a class without objects."""

    name: str
    ap: float | None  # mean over IoU thresholds 0.50, 0.55, ..., 0.95, in [0, 1]
    ap50: float | None
    ap75: float | None
    objects: int  # annotated objects of this class, crowds not counted


class CocoAP(SingleHeadMetric):
    """COCO's twelve numbers of one head, in [0, 1], under `<head>/AP` ... `<head>/ARl`; equal to pycocotools'.

    AP, AP50, AP75; APs, APm, APl (objects below 32 x 32, up to 96 x 96, and above, by annotated area); AR1, AR10, AR100
    (recall with that many predictions for each image); ARs, ARm, ARl. With `iou_type='segm'` objects are compared by
    their masks, under `<head>/segm/AP` .... A number without any object to find has no value and is left out.

    `classes` are the names, by default those of the data set for the labels. Crowds (`iscrowd`) are never objects to
    find; predictions on them do not count. An image whose objects are not annotated is skipped and counted.

    The best `max_detections` predictions of an image and class count, as in COCO; where images have more objects of
    one class, a line says so. With another limit than 100 AR100 is called by it.

    `engine` is 'pycocotools', 'fast' (hotcoco, the extra `fast`: the same arrays, many times faster), or 'auto': the
    fast one where it is installed.

    Raises NumericsError when predictions are not finite: pycocotools takes a NaN box for a perfect match.
    """

    names = tuple(NUMBERS)  # what `evaluate` gives by default, so that a misspelt key is refused early

    def __init__(
        self,
        *,
        head: str = 'det',
        iou_type: IouType = 'bbox',
        field: str = 'labels',
        classes: Sequence[str] | None = None,
        engine: Engine = 'pycocotools',
        max_detections: int = LIMIT,
    ) -> None:
        why = 'it is a whole number above 10: AR1 and AR10 have limits of their own'
        fix = f'leave it out (COCO counts {LIMIT}), or give such a number'
        check(type(max_detections) is int and max_detections > 10, 'CocoAP.max_detections', max_detections, why, fix)
        check_choice('CocoAP.iou_type', iou_type, ('bbox', 'segm'))
        choose_engine(engine)
        super().__init__(head, field, classes, prefix=head if iou_type == 'bbox' else f'{head}/{iou_type}')
        self.iou_type, self.engine, self.max_detections = iou_type, engine, max_detections
        self._numbers = {f'AR{max_detections}' if name == f'AR{LIMIT}' else name: name for name in NUMBERS}
        self.names = tuple(self._numbers)
        self._images: list[_Image] = []
        self._curves: Curves | None = None
        self._objects: list[int] = []
        self._columns: tuple[Objects, Objects] | None = None  # targets and predictions of the last evaluation
        self.remark = ''  # what the last score leaves out

    def process(self, data_batch: Batch, data_samples: Sequence[dict[str, Prediction]]) -> None:
        """Keep what is needed of one batch: `data_samples[i][head]` and `data_batch.targets[i]`."""
        for target, meta, sample in zip(data_batch.targets, data_batch.metas, data_samples, strict=True):
            if target.boxes is None or target.labels is None:
                self._skipped += 1
                continue
            predictions, runs = sample[self.head], None
            if self.iou_type == 'segm':
                runs = encode(target_masks(target, meta)), encode(predictions.masks)
            fields = (target.boxes, target.labels, target.iscrowd, target.area)
            boxes, labels, crowd, area = (None if field is None else field.detach().cpu() for field in fields)
            scores = (field.detach().cpu() for field in predictions[:3])
            self._images.append(
                _Image(
                    (meta.dataset, meta.image_id),
                    Target(boxes=boxes, labels=labels, iscrowd=crowd, area=area),
                    Instances(*scores),
                    runs,
                )
            )

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the images of all ranks and return the numbers; then discard the images. `size` is not needed.

        Raises NumericsError, on every rank, when predictions are not finite, and ConfigError for invalid labels.
        """
        shares = all_gather_object((_share(self._images, self.iou_type), self._skipped))  # every rank comes here
        skipped = sum(count for _, count in shares)
        shares = [share for share, _ in shares]
        self._images, self._skipped = [], 0
        for share in shares:
            check_labels(share, len(self.classes))
        refuse_non_finite([share.predictions for share in shares], where=self.prefix)
        result: list[Any] = [None]
        if is_main_process():
            result = [self._try(shares, skipped)]
        broadcast_object_list(result)
        if isinstance(result[0], Exception):  # all ranks raise the error of one that failed
            raise result[0]
        return self.prefixed(result[0])

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the numbers of the last evaluation that have a value."""
        numbers = {name: self._curves.number(of) for name, of in self._numbers.items()} if self._curves else {}
        return {name: value for name, value in numbers.items() if value is not None}

    def table(self) -> list[ClassAP]:
        """Return one row for each class, in the order of the classes, of the last evaluation."""
        return [
            ClassAP(name, *(self._curves.number(kind, row) for kind in ('AP', 'AP50', 'AP75')), self._objects[label])
            for label, (name, row) in enumerate(zip(self.classes, self._rows(), strict=True))
        ]

    def operating_points(self) -> dict[str, Any]:
        """Return the thresholds of best F1 in the last evaluation (`describe_points`); nothing before one."""
        if self._columns is None or not any(self._objects):
            return {}
        targets, predictions = self._columns
        hits, counted = match(targets, predictions)
        labels = np.argsort(self._rows())[predictions.category]
        return describe_points(predictions.scores[counted], hits[counted], labels[counted], self._objects)

    def _try(self, shares: list[_Share], skipped: int) -> dict[str, float] | Exception:
        try:
            self.warn_skipped(skipped)
            orders = in_order([share.keys for share in shares])
            targets, predictions = (
                merge([share[column] for share in shares], orders, self._rows()) for column in (1, 2)
            )
            return self.score(targets, predictions, sum(map(len, orders)))
        except Exception as error:
            return error

    def score(self, targets: Objects, predictions: Objects, num_images: int) -> dict[str, float]:
        """Return the numbers of objects that are at hand as columns, by name; `table` then lists their classes.

        Categories are numbered in the order of their ids. Raises NumericsError as `evaluate` does.
        """
        refuse_non_finite([predictions], where=self.prefix)
        rows = self._rows()
        options = dict(iou_type=self.iou_type, engine=self.engine, max_detections=self.max_detections)
        self._curves = make_curves(targets, predictions, num_images, len(rows), **options)
        self._log_limit(targets, predictions, num_images, len(rows))
        counts = np.bincount(targets.category[~targets.crowd], minlength=len(rows))
        self._objects, self._columns = counts[rows].tolist(), (targets, predictions)
        if not counts.any():
            logger.warning('%s: n/a, there is no object to find', self.prefix)
        return self.compute_metrics([])

    def _log_limit(self, targets: Objects, predictions: Objects, num_images: int, num_categories: int) -> None:
        """Log how many images have more objects of one class, or predictions, than count."""
        cells, counts = np.unique(
            targets.image[~targets.crowd] * num_categories + targets.category[~targets.crowd], return_counts=True
        )
        crowded = np.unique(cells[counts > self.max_detections] // num_categories)
        self.remark = too_many_objects(len(crowded), num_images, self.max_detections) if len(crowded) else ''
        if self.remark:
            logger.warning('%s: %s', self.prefix, self.remark)
        counts = np.unique(predictions.image * num_categories + predictions.category, return_counts=True)[1]
        beyond = int((counts - self.max_detections).clip(0).sum())
        if beyond:
            text = '%s: %d of %d predictions do not count: they are beyond the best %d of their image and class'
            logger.info(text, self.prefix, beyond, len(predictions.image), self.max_detections)

    def _rows(self) -> list[int]:
        """Return the row of each label: categories stand in the order of their ids, as in pycocotools."""
        ids = range(len(self.classes)) if self._classes is not None else category_ids(self.dataset_meta, self.field)
        last = max((number for number in ids if number is not None), default=0) + 1
        ids = [last + label if number is None else number for label, number in enumerate(ids)]  # not in the file
        order = sorted(ids)
        return [order.index(number) for number in ids]


def too_many_objects(count: int, num_images: int, limit: int) -> str:
    """Return the log message where `count` images have more objects of one class than predictions of it count."""
    return (
        f'{count} of {num_images} images {"has" if count == 1 else "have"} more than {limit} objects of one class: AP '
        f'and AR count the best {limit} predictions of an image and class only; CocoAP(max_detections=...) and '
        'evaluate.py coco --max-detections set another limit'
    )


Key = tuple[str, int | str]  # data set and image id


class _Image(NamedTuple):
    key: Key
    targets: Target
    predictions: Instances
    runs: tuple[list, list] | None  # masks of targets and predictions, as run lengths


class _Share(NamedTuple):
    """The images of one rank."""

    keys: list[Key]
    targets: Objects
    predictions: Objects


def _share(images: Sequence[_Image], iou_type: IouType) -> _Share:
    targets, predictions = [image.targets for image in images], [image.predictions for image in images]
    if iou_type == 'bbox':
        columns = target_columns(targets), prediction_columns(predictions)
    else:
        masks = [[image.runs[column] for image in images] for column in (0, 1)]
        columns = target_columns(targets, masks[0]), prediction_columns(predictions, masks[1])
    return _Share([image.key for image in images], *columns)


def target_masks(target: Target, meta: Meta) -> Tensor:
    """Return the masks of a target. Raises DataError when there are none."""
    if target.masks is None:
        raise DataError(
            'there are no masks to compare with',
            where=meta.path or f'image {meta.image_id}',
            why='CocoAP(iou_type="segm") needs the masks of the annotated objects',
            fix='let the data set give masks (CocoDetection: masks=True), or use iou_type="bbox"',
        )
    return target.masks


def check_labels(share: _Share, num_classes: int) -> None:
    """Raise ConfigError for labels that are no class, and DataError for annotated boxes that are not finite."""
    for table, kind in ((share.targets, 'annotated'), (share.predictions, 'predicted')):
        invalid = (table.category < 0) | (table.category >= num_classes)
        if invalid.any():
            raise ConfigError(
                f'{kind} classes {np.unique(table.category[invalid])[:10].tolist()} are not in 0..{num_classes - 1}',
                where=f'image {share.keys[table.image[invalid][0]][1]}',
                why=f'the metric has the {num_classes} classes of the data set under test',
                fix='test on a data set with the classes that the model was trained on',
            )
    odd = ~(np.isfinite(share.targets.boxes).all(1) & np.isfinite(share.targets.area))
    if odd.any():
        raise DataError(
            'an annotated box is not finite',
            where=f'image {share.keys[share.targets.image[odd][0]][1]}',
            why='no prediction can be compared with it',
            fix='correct the annotation; tools/check_data.py lists such boxes',
        )


def in_order(keys: Sequence[Sequence[Key]]) -> list[np.ndarray]:
    """Return for each rank the place of its images in the order of ids. Raises DataError when one occurs twice."""
    together = [key for some in keys for key in some]
    numbers = all(isinstance(name, int) for _, name in together)
    names = [key if numbers else (key[0], str(key[1])) for key in together]
    order = sorted(range(len(together)), key=names.__getitem__)
    for one, other in zip(order, order[1:], strict=False):
        if together[one] == together[other]:
            raise DataError(
                f'image {together[one][1]} was evaluated twice',
                where=f"data set '{together[one][0]}'",
                why='every image counts once, so image ids are unique within a data set',
                fix='give every image an id of its own, and every data set a name of its own',
            )
    ranks = np.empty(len(together), np.int64)
    ranks[order] = np.arange(len(together))
    return np.split(ranks, np.cumsum([len(some) for some in keys])[:-1])


def refuse_non_finite(tables: Iterable[Objects], *, where: str) -> None:
    """Raise NumericsError when boxes or scores in `tables` (Objects) are not finite."""
    boxes = scores = total = 0
    for table in tables:
        total += len(table.scores)
        boxes += int((~np.isfinite(table.boxes).all(1)).sum())
        scores += int((~np.isfinite(table.scores)).sum())
    if boxes or scores:
        raise NumericsError(
            f'{boxes:,} non-finite boxes and {scores:,} non-finite scores among {total:,} predictions',
            where=where,
            why='a comparison with NaN has no meaning, and pycocotools counts a NaN box as a perfect match',
            fix='look at the losses of the run: training has diverged, or a checkpoint is damaged',
        )
