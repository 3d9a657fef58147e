"""Average precision of detections by COCO's rules."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric

from vitdense.errors import ConfigError, DataError, NumericsError
from vitdense.metrics.coco_columns import Objects, category_ids, columns, join, truth_columns
from vitdense.metrics.coco_curves import NUMBERS, Curves, Engine, IouType, choose_engine, make_curves
from vitdense.types import Batch, Meta, Prediction

logger = logging.getLogger('vitdense')


class ClassAP(NamedTuple):
    """One row of the table. A score is None where there is nothing to find."""

    name: str
    ap: float | None  # mean over IoU thresholds 0.50, 0.55, ..., 0.95, in [0, 1]
    ap50: float | None
    ap75: float | None
    objects: int  # annotated objects of this class, crowds not counted


class CocoAP(BaseMetric):
    """COCO's twelve numbers of one head, in [0, 1], under `<head>/AP` ... `<head>/ARl`; equal to pycocotools'.

    AP, AP50, AP75; APs, APm, APl (objects below 32 x 32, up to 96 x 96, and above, by annotated area); AR1, AR10, AR100
    (recall with that many predictions for each picture); ARs, ARm, ARl. With `iou_type='segm'` objects are compared by
    their masks, under `<head>/segm/AP` .... A number without any object to find has no value and is left out.

    `classes` are the names, by default those of the data set for the labels. Crowds (`iscrowd`) are never objects to
    find; predictions on them do not count. A picture whose objects nobody annotated is skipped and counted.

    `engine` is 'pycocotools', 'fast' (hotcoco, the extra `fast`: the same arrays, many times faster), or 'auto': the
    fast one where it is installed.

    Raises NumericsError when predictions are not finite: pycocotools takes a NaN box for a perfect match.
    """

    names = tuple(NUMBERS)  # what `evaluate` gives, so that a misspelt key is refused early

    def __init__(
        self,
        *,
        head: str = 'det',
        iou_type: IouType = 'bbox',
        field: str = 'labels',
        classes: Sequence[str] | None = None,
        engine: Engine = 'pycocotools',
    ) -> None:
        if iou_type not in ('bbox', 'segm'):
            raise ConfigError(
                f'iou_type = {iou_type!r}',
                where='CocoAP.iou_type',
                why='objects are compared by their boxes or by their masks',
                fix="write iou_type='bbox' or iou_type='segm'",
            )
        choose_engine(engine)
        super().__init__(prefix=head if iou_type == 'bbox' else f'{head}/{iou_type}')
        self.head, self.field = head, field
        self.iou_type, self.engine = iou_type, engine
        self._classes = None if classes is None else list(classes)
        self._pictures: list[_Picture] = []
        self._skipped = 0
        self._curves: Curves | None = None
        self._objects: list[int] = []

    @property
    def classes(self) -> list[str]:
        """The names of the classes. Raises ConfigError when neither the config nor the data set gives them."""
        if self._classes is not None:
            return self._classes
        known = (self.dataset_meta or {}).get('classes', {})
        if self.field not in known:
            raise ConfigError(
                f"CocoAP does not know the classes of '{self.field}'",
                where=f"CocoAP(head='{self.head}')",
                why=f"metainfo['classes'] of the data set names {sorted(known) or 'nothing'}",
                fix='give classes=[...] to CocoAP, or a data set whose metainfo has them',
            )
        return list(known[self.field])

    def process(self, data_batch: Batch, data_samples: Sequence[dict[str, Prediction]]) -> None:
        """Keep what is needed of one batch: `data_samples[i][head]` and `data_batch.targets[i]`."""
        for target, meta, sample in zip(data_batch.targets, data_batch.metas, data_samples, strict=True):
            if target.boxes is None or target.labels is None:
                self._skipped += 1
                continue
            masks = self.iou_type == 'segm'
            picture = _Picture(
                (meta.dataset, meta.image_id), truth_columns(target, meta, masks), columns(sample[self.head], masks)
            )
            _check_labels(picture, len(self.classes), meta)
            self._pictures.append(picture)

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the pictures of all ranks and return the numbers; then forget them. `size` is not needed.

        Raises NumericsError, on every rank, when predictions are not finite.
        """
        pictures, skipped = [], 0
        for theirs, count in all_gather_object((self._pictures, self._skipped)):  # every rank comes here
            pictures += theirs
            skipped += count
        self._pictures, self._skipped = [], 0
        refuse_non_finite((picture.found for picture in pictures), where=self.prefix)
        answer: list[Any] = [None]
        if is_main_process():
            answer = [self._try(pictures, skipped)]
        broadcast_object_list(answer)
        if isinstance(answer[0], Exception):  # nobody waits for a rank that failed
            raise answer[0]
        return {f'{self.prefix}/{name}': value for name, value in answer[0].items()}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the numbers of the last evaluation that have a value."""
        numbers = {name: self._curves.number(name) for name in NUMBERS} if self._curves else {}
        return {name: value for name, value in numbers.items() if value is not None}

    def table(self) -> list[ClassAP]:
        """Return one row for each class, in the order of the classes, of the last evaluation."""
        return [
            ClassAP(name, *(self._curves.number(kind, row) for kind in ('AP', 'AP50', 'AP75')), self._objects[label])
            for label, (name, row) in enumerate(zip(self.classes, self._rows(), strict=True))
        ]

    def _try(self, pictures: list[_Picture], skipped: int) -> dict[str, float] | Exception:
        try:
            return self._compute(pictures, skipped)
        except Exception as error:
            return error

    def _compute(self, pictures: list[_Picture], skipped: int) -> dict[str, float]:
        pictures = in_order(pictures)
        if skipped:
            logger.warning('%s: skipped without truth: %d of the pictures', self.prefix, skipped)
        truth, found = (join([picture[place] for picture in pictures], self._rows()) for place in (1, 2))
        return self.score(truth, found, len(pictures))

    def score(self, truth: Objects, found: Objects, num_images: int) -> dict[str, float]:
        """Return the numbers of objects that are at hand as columns, by name; `table` then tells about their classes.

        Categories are numbered in the order of their ids. Raises NumericsError as `evaluate` does.
        """
        refuse_non_finite([found], where=self.prefix)
        rows = self._rows()
        self._curves = make_curves(truth, found, num_images, len(rows), iou_type=self.iou_type, engine=self.engine)
        counts = np.bincount(truth.category[~truth.crowd], minlength=len(rows))
        self._objects = counts[rows].tolist()
        if not counts.any():
            logger.warning('%s: n/a, there is no object to find', self.prefix)
        return self.compute_metrics([])

    def _rows(self) -> list[int]:
        """Return the row of each label: categories stand in the order of their ids, as in pycocotools."""
        ids = range(len(self.classes)) if self._classes is not None else category_ids(self.dataset_meta, self.field)
        last = max((number for number in ids if number is not None), default=0) + 1
        ids = [last + label if number is None else number for label, number in enumerate(ids)]  # not in the file
        order = sorted(ids)
        return [order.index(number) for number in ids]


class _Picture(NamedTuple):
    key: tuple[str, int | str]  # data set and image id
    truth: Objects
    found: Objects


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


def in_order(pictures: list[_Picture]) -> list[_Picture]:
    """Return the pictures in the order of their ids. Raises DataError when one occurs twice."""
    numbers = all(isinstance(picture.key[1], int) for picture in pictures)
    ordered = sorted(pictures, key=lambda picture: picture.key if numbers else (picture.key[0], str(picture.key[1])))
    for one, other in zip(ordered, ordered[1:], strict=False):
        if one.key == other.key:
            raise DataError(
                f'image {one.key[1]} was evaluated twice',
                where=f"data set '{one.key[0]}'",
                why='every picture counts once, so image ids are unique within a data set',
                fix='give every picture an id of its own, and every data set a name of its own',
            )
    return ordered


def _check_labels(picture: _Picture, num_classes: int, meta: Meta) -> None:
    for table, kind in ((picture.truth, 'annotated'), (picture.found, 'predicted')):
        strange = sorted({label for label in table.category.tolist() if not 0 <= label < num_classes})
        if strange:
            raise ConfigError(
                f'{kind} classes {strange[:10]} are not in 0..{num_classes - 1}',
                where=meta.path or f'image {meta.image_id}',
                why=f'the metric knows the {num_classes} classes of the data set under test',
                fix='test on a data set with the classes that the model was trained on',
            )
