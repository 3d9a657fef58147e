"""`tools/evaluate.py`: score saved predictions of any program, without a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitdense.arguments import check
from vitdense.data.class_names import read_classes
from vitdense.data.coco.arrays import CocoFileInfo
from vitdense.data.coco.cache import open_coco
from vitdense.data.coco.faults import check_faults, check_has_images, describe_corrections
from vitdense.data.files.images import LABEL_SUFFIXES, read_label_map
from vitdense.data.files.pairs import list_files, match
from vitdense.data.label_check import LabelStatistics
from vitdense.data.label_map import LabelTable
from vitdense.errors import ConfigError, DataError, NumericsError
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.coco_curves import LIMIT, Engine, IouType
from vitdense.metrics.miou import MeanIoU
from vitdense.reporting.console import start_logging
from vitdense.reporting.progress import print_metrics
from vitdense.scoring.coco_records import number, refuse_unknown_sizes, targets_of
from vitdense.scoring.coco_results import read_results
from vitdense.storage.atomic import make_folder, write_json
from vitdense.types import IGNORE, Batch, Meta, SemanticMap, Target

logger = logging.getLogger('vitdense')


def evaluate_coco(
    annotations: str | Path,
    results: str | Path,
    *,
    iou_type: IouType = 'bbox',
    engine: Engine = 'pycocotools',
    max_detections: int = LIMIT,
    ignore_unknown: bool = False,
    work_dir: str | Path | None = None,
) -> dict[str, float | None]:
    """Return COCO's twelve numbers of a results file, print them, and write `metrics.json` into `work_dir`.

    They are pycocotools' own, to the last digit; a number without objects is None. The best
    `max_detections` predictions of an image and class count. With `ignore_unknown` predictions of categories that the
    annotation file does not have are left out, as in pycocotools. Annotations that pycocotools cannot read are
    errors. Raises DataError, NumericsError when predictions are not finite.
    """
    annotations_path, results_path = Path(annotations), Path(results)
    metric = CocoAP(iou_type=iou_type, engine=engine, max_detections=max_detections)
    base = _start(work_dir)
    arrays, info = open_coco(annotations_path, masks=iou_type == 'segm')
    check_faults(annotations_path, info, ignored_kinds=('name',))
    check_has_images(annotations_path, arrays)
    _log_info(annotations_path, info)
    numbering, rows = number(arrays, info)
    metric.dataset_meta = {'classes': {'labels': info.names}, 'category_ids': {'labels': info.category_ids}}
    if iou_type == 'segm':
        refuse_unknown_sizes(annotations_path, arrays)
    targets = targets_of(arrays, numbering, rows, iou_type, annotations_path)
    predictions = read_results(results_path, numbering, iou_type, ignore_unknown=ignore_unknown)
    try:
        scores = metric.score(targets, predictions, len(rows))
    except NumericsError as error:  # name the row of the file
        odd = ~(np.isfinite(predictions.boxes).all(axis=1) & np.isfinite(predictions.scores))
        image = list(numbering.images)[int(predictions.image[np.argmax(odd)])]
        raise NumericsError(
            error.message,
            where=f'{results_path}, first for image_id {image}',
            why=error.why,
            fix='remove these rows, or correct the program that wrote them',
        ) from None
    title = f'{len(rows)} images, {len(targets.image)} objects, {len(predictions.image)} predictions'
    metrics = _finish(metric, scores, base, title)
    if metric.remark:
        logger.warning(metric.remark)  # once more, beside the score
    return metrics


def _log_info(path: Path, info: CocoFileInfo) -> None:
    """Log what is unusual in an annotation file."""
    text = describe_corrections(info, evaluation=True)
    if text:
        logger.warning('%s: %s', path.name, text)
    if info.counts.get('duplicate_id'):
        logger.warning(
            '%s: objects of one id all count; pycocotools counts the last of them in place of each', path.name
        )
    if info.corners is not None:
        logger.warning('%s: %.0f %% of boxes leave the image; is it xyxy?', path.name, 100 * info.corners)
    if info.fractions:
        logger.warning('%s: all boxes lie in [0, 1]; are they fractions of the image?', path.name)


def evaluate_semantic(
    labels: str | Path,
    predictions: str | Path,
    *,
    num_classes: int,
    ignore: int = IGNORE,
    reduce_zero_label: bool = False,
    label_map: Mapping[int, int] | None = None,
    classes: Sequence[str] | str | Path | None = None,
    work_dir: str | Path | None = None,
) -> dict[str, float | None]:
    """Return mIoU and other scores of a folder of predicted label maps; print them, and write `metrics.json`.

    Every label map below `labels` needs a prediction of the same name and size below `predictions`. Both hold numbers
    of classes from 0; `ignore` in the labels does not count. With `reduce_zero_label` the labels (not the predictions)
    have 0 for "no class" and 1 ... K for the classes; `label_map` maps their numbers to classes, as in
    `SegmentationDataset`. `classes` are names as `read_classes` takes them. Classes that occur in none of the labels
    are named beside the score. Raises DataError.
    """
    names = [f'class {index}' for index in range(num_classes)]
    if classes is not None:
        names = list(read_classes(classes).values())
    fix = 'give as many names as classes, or leave the names out'
    check(len(names) == num_classes, '--num-classes', num_classes, f'--classes has {len(names)} names', fix)
    table = None
    if label_map is not None:
        kept = None if ignore in label_map else ignore
        table, ignore = LabelTable(names, label_map=label_map, reduce_zero_label=reduce_zero_label, ignore=kept), IGNORE
    metric, statistics = MeanIoU(classes=names, ignore=ignore), LabelStatistics(names)
    base = _start(work_dir)
    pairs = _pairs(Path(labels), Path(predictions))
    for label_path, prediction_path in pairs.values():
        raw, prediction = read_label_map(label_path), read_label_map(prediction_path)
        target = _reduced(raw, ignore) if reduce_zero_label and table is None else raw
        if table is not None:
            target = torch.from_numpy(table.apply(raw.numpy(), label_path))
        _count(metric, target, prediction, label_path, prediction_path)
        if num_classes <= IGNORE:  # 16-bit labels of more classes are not counted
            statistics.add(raw.numpy(), np.where(target.numpy() == ignore, IGNORE, target.numpy()).astype(np.uint8))
    scores = {name.rpartition('/')[2]: value for name, value in metric.evaluate(len(pairs)).items()}
    if base is not None:
        metric.save_confusion(base)
    metrics = _finish(metric, scores, base, f'{len(pairs)} images')
    statistics.log(logger, str(labels), len(pairs))  # beside the score
    return metrics


def _count(metric: MeanIoU, target: Tensor, prediction: Tensor, label_path: Path, prediction_path: Path) -> None:
    """Count one pair of label maps. Raises DataError when they do not fit each other or the classes."""
    if target.shape != prediction.shape:
        raise DataError(
            f'{prediction_path.name}: (H, W) {tuple(prediction.shape)} for labels of {tuple(target.shape)}',
            where=f'{prediction_path} and {label_path}',
            why='predictions are compared pixel by pixel',
            fix='save the predictions in the original size of the images',
        )
    batch = Batch(target[None], [Target(semantic=target)], [Meta(label_path.stem, str(label_path))])
    try:
        metric.process(batch, [{metric.head: SemanticMap(prediction)}])
    except ConfigError as error:
        raise DataError(
            f'{prediction_path.name}: {error.message}',
            where=str(prediction_path),
            why=f'--num-classes says that there are {len(metric.classes)}',
            fix='correct --num-classes; predictions are class numbers from 0',
        ) from None


def _start(work_dir: str | Path | None) -> Path | None:
    base = None if work_dir is None else Path(work_dir)
    if base is not None:
        make_folder(base)
    start_logging(base)
    return base


def _finish(metric: Any, scores: dict[str, float], base: Path | None, title: str) -> dict[str, float | None]:
    """Print the scores, write them, and return them under their full names; None where there is none."""
    metrics = {f'{metric.prefix}/{name}': scores.get(name) for name in metric.names}
    print_metrics([metric], metrics, title=title)
    if base is not None:
        write_json(base / 'metrics.json', metrics)
        logger.info('scores: %s', base / 'metrics.json')
    return metrics


def _pairs(labels: Path, predictions: Path) -> dict[str, tuple[Path, Path]]:
    """Return `{name: (label file, prediction file)}`. Raises DataError when a prediction is missing."""
    annotated = list_files(labels, LABEL_SUFFIXES, what='label maps')
    predicted = list_files(predictions, LABEL_SUFFIXES, what='predictions')
    try:
        pairs = match(annotated, predicted, where=f'{labels} and {predictions}')
    except DataError as error:
        missing = [name for key, name in annotated.items() if key not in predicted]
        raise DataError(
            f'{len(missing)} of {len(annotated)} label maps have no prediction, such as {", ".join(missing[:3])}',
            where=error.where,
            why='the score is that of all images',
            fix='predict all images; a prediction has the path of its label map, without the ending',
        ) from None
    return {key: (labels / one, predictions / other) for key, (one, other) in pairs.items()}


def _reduced(labels: Tensor, ignore: int) -> Tensor:
    """Return labels 1 ... K as 0 ... K - 1, and 0 as `ignore`."""
    numbers = labels.numpy().astype(np.int32)
    moved = np.where((numbers == 0) | (numbers == ignore), ignore, numbers - 1)
    return torch.from_numpy(moved.astype(np.uint8) if moved.max(initial=0) < 256 else moved)
