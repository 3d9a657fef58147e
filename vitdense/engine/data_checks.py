"""What is said about the data before the first step: how much there is, which files are missing, and what no model or
metric can do with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dist import is_main_process

from vitdense.data.arguments import MAX_BAD_FRACTION
from vitdense.data.near_files import near_match
from vitdense.engine.commandline import tool_command
from vitdense.errors import DataError
from vitdense.metrics.coco import too_many_objects

logger = logging.getLogger('vitdense')


def log_data(datasets: Mapping[str, Any]) -> None:
    """Say how many images, and where it is known objects and classes, the data sets have; the keys say what for."""
    for name, dataset in datasets.items():
        for part in _parts(dataset):
            of = getattr(part, 'name', '')
            text = part.summary() if hasattr(part, 'summary') else f'{len(part):,} images'
            logger.info('%s: %s', f'{name}, {of}' if of else name, text)


def refuse_missing(dataset: Any, *, name: str, max_bad_fraction: float | None = None) -> None:
    """Raise DataError when files of a data set are not there; with a `max_bad_fraction`, only for more than that.

    `name` says what the data is for. One missing image is always allowed where some are.
    """
    parts = _parts(dataset)
    missing = [(part, file) for part in parts if hasattr(part, 'missing') for file in part.missing()]
    if not missing:
        return
    part, file = missing[0]
    root = part.images
    names = ', '.join(file for _, file in missing[:3])
    text = f'{len(missing)} of {len(dataset)} images are missing, such as {names}'
    near = near_match(root, file)
    if max_bad_fraction is not None and len(missing) <= max(1, max_bad_fraction * len(dataset)):
        if is_main_process():
            logger.warning('%s: %s; others take their place%s', name, text, f' ({near})' if near else '')
        return
    path = getattr(part, 'path', '')
    command = tool_command('check_data', *filter(None, (path, root)))
    fix = f'correct images=... or data_root=..., or take them out of the list: {command}'
    if max_bad_fraction is None:
        why = 'a score over a part of the images is not the score of all'
    else:
        why = f'training goes on without {max_bad_fraction:.1%} of the images at most (max_bad_fraction)'
        fraction = min(1, np.ceil(100 * len(missing) / len(dataset)) / 100)
        fix += f'\nor train without them: --cfg-options +train_dataloader.max_bad_fraction={fraction:g}'
    raise DataError(f'{name}: {text}', where=str(root), why=f'{near}; {why}' if near else why, fix=fix)


def max_bad_fraction(section: Mapping[str, Any]) -> float:
    """Return the share of unreadable images that a training section allows."""
    return section.get('max_bad_fraction', MAX_BAD_FRACTION)


def log_limits(model: Any, train: Any, validation: Mapping[str, Any], metrics: Mapping[str, Sequence[Any]]) -> None:
    """Say where images have more objects than a head has queries, than are read, or than a metric counts."""
    if not is_main_process():
        return
    for name, task in model.tasks.items():
        top_k = getattr(task, 'top_k', None)
        if top_k is None or task.field != 'labels':
            continue
        parts = [part for part in _parts(train) if task.datasets is None or getattr(part, 'name', '') in task.datasets]
        counts = _counts(parts)
        heads = dict(getattr(model.network, 'heads', {}))
        queries = getattr(heads.get(name, model.network), 'num_queries', None)
        for limit, what in (
            (queries, f"the head '{name}' has {queries} queries: raise its num_queries"),
            (top_k, f'{top_k} predictions are read from an image: raise model.tasks.{name}.top_k'),
        ):
            if limit is not None and (counts > limit).any():
                text = '%d of %d training images have more than %d objects, up to %d, and %s'
                logger.warning(text, (counts > limit).sum(), len(counts), limit, counts.max(), what)
    for name, dataset in validation.items():
        for metric in metrics.get(name, ()):
            limit, counts = getattr(metric, 'max_detections', None), _counts(_parts(dataset), of_one_class=True)
            if limit is not None and (counts > limit).any():
                count = int((counts > limit).sum())
                logger.warning('validation: %s', too_many_objects(count, len(counts), limit))


def _counts(parts: Sequence[Any], **options: Any) -> np.ndarray:
    """Return the number of objects of every image of those data sets that know it."""
    known = [part.object_counts(**options) for part in parts if hasattr(part, 'object_counts')]
    return np.concatenate([*known, np.zeros(0, np.int64)])


def _parts(dataset: Any) -> list[Any]:
    """Return the data sets that a mixture draws from, or the one."""
    return [part for _, part in dataset.parts()] if hasattr(dataset, 'parts') else [dataset]
