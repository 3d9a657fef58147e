"""Checks of the data before the first step: how much there is, which files are missing, and what no model or
metric can do with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dist import is_main_process

from vitdense.data.dataset_protocols import (
    AnnotatedDataset,
    ListedDataset,
    MixedDataset,
    ObjectDataset,
    SummaryDataset,
    ValueRangeDataset,
)
from vitdense.data.files.similar_names import near_match
from vitdense.errors import DataError
from vitdense.metrics.average_precision import too_many_objects
from vitdense.protocols import HeadsNetwork, LimitedMetric, QueryPart, TopKTask
from vitdense.reporting.next_commands import tool_command

logger = logging.getLogger('vitdense')


def log_data(datasets: Mapping[str, Any]) -> None:
    """Log how many images, objects and classes the data sets of objects have, by their use."""
    for name, dataset in datasets.items():
        for part in _parts(dataset):
            if isinstance(part, SummaryDataset):  # others log it when they look for their files
                logger.info('%s, %s: %s', name, part.name, part.summary())


def compare_ranges(first: Any, others: Mapping[str, Any]) -> None:
    """Warn where data sets read numbers of more than 8 bits in another range than that of training, `first`."""
    ours = {part.value_range for part in _parts(first) if isinstance(part, ValueRangeDataset)}
    for name, other in others.items():
        theirs = {part.value_range for part in _parts(other) if isinstance(part, ValueRangeDataset)}
        if ours and theirs and not theirs <= ours:
            text = '%s: value_range is %s, and %s in training: the same image looks different'
            logger.warning(text, name, *(' or '.join(sorted(map(str, ranges))) for ranges in (theirs, ours)))


def refuse_missing(dataset: Any, *, name: str, max_bad_fraction: float | None = None) -> None:
    """Raise DataError when files of a data set are not there; with a `max_bad_fraction`, only for more than that.

    `name` is the use of the data. One missing image is always allowed where some are.
    """
    parts = _parts(dataset)
    missing = [(part, file) for part in parts if isinstance(part, ListedDataset) for file in part.missing()]
    if not missing:
        return
    part, file = missing[0]
    root, _ = part.image_files()
    names = ', '.join(file for _, file in missing[:3])
    text = f'{len(missing)} of {len(dataset)} images are missing, such as {names}'
    near = near_match(root, file)
    if max_bad_fraction is not None and len(missing) <= max(1, max_bad_fraction * len(dataset)):
        if is_main_process():
            logger.warning('%s: %s; others take their place%s', name, text, f' ({near})' if near else '')
        return
    path = part.path if isinstance(part, AnnotatedDataset) else ''
    command = tool_command('check_data', *filter(None, (path, root)))
    fix = f'correct images=... or data_root=..., or take them out of the list: {command}'
    if max_bad_fraction is None:
        why = 'a score over a part of the images is not the score of all'
    else:
        why = f'training goes on without {max_bad_fraction:.1%} of the images at most (max_bad_fraction)'
        fraction = min(1, np.ceil(100 * len(missing) / len(dataset)) / 100)
        fix += f'\nor train without them: --cfg-options +train_dataloader.max_bad_fraction={fraction:g}'
    raise DataError(f'{name}: {text}', where=str(root), why=f'{near}; {why}' if near else why, fix=fix)


def log_query_limits(model: Any, dataset: Any, *, name: str) -> None:
    """Log where images have more objects than a head of the model has queries, or than are read from it."""
    if not is_main_process():
        return
    heads = dict(model.network.heads) if isinstance(model.network, HeadsNetwork) else {}
    for branch, task in model.tasks.items():
        if not isinstance(task, TopKTask) or task.field != 'labels':
            continue
        top_k = task.top_k
        parts = [part for part in _parts(dataset) if isinstance(part, ObjectDataset)]
        counts = _counts([part for part in parts if not task.datasets or part.name in task.datasets])
        head = heads.get(branch, model.network)
        queries = head.num_queries if isinstance(head, QueryPart) else None
        for limit, what in (
            (queries, f"the head '{branch}' has {queries} queries (num_queries)"),
            (top_k, f'{top_k} predictions are read from an image (top_k of model.tasks.{branch})'),
        ):
            if limit is not None and (counts > limit).any():
                text = '%s: %d of %d images have more than %d objects, up to %d, and %s'
                logger.warning(text, name, (counts > limit).sum(), len(counts), limit, counts.max(), what)


def log_metric_limits(datasets: Mapping[str, Any], metrics: Mapping[str, Sequence[Any]], *, name: str) -> None:
    """Log where images have more objects of one class than a metric counts predictions."""
    if not is_main_process():
        return
    for key, dataset in datasets.items():
        for metric in metrics.get(key, ()):
            limit = metric.max_detections if isinstance(metric, LimitedMetric) else float('inf')
            counts = _counts(_parts(dataset), of_one_class=True)
            if (counts > limit).any():
                text = too_many_objects(int((counts > limit).sum()), len(counts), limit)
                logger.warning('%s: %s', f'{name} {key}'.strip(), text)


def _counts(parts: Sequence[Any], **options: Any) -> np.ndarray:
    """Return the number of objects of every image, for the data sets that have it."""
    known = [part.object_counts(**options) for part in parts if isinstance(part, ObjectDataset)]
    return np.concatenate([*known, np.zeros(0, np.int64)])


def _parts(dataset: Any) -> list[Any]:
    """Return the data sets that a mixture draws from, or the one."""
    return [part for _, part in dataset.parts()] if isinstance(dataset, MixedDataset) else [dataset]
