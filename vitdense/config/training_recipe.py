"""Data pipeline, optimizer and schedule for a trained model and other data: those of a file in
`configs/_base_/training`, for images of the size at which the model is evaluated.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from vitdense.config.classes import field_of
from vitdense.config.load import KEYS
from vitdense.config.locate import find_config, read_config
from vitdense.errors import ConfigError

logger = logging.getLogger('vitdense')
FIELDS = {'detection': 'labels', 'segmentation': 'semantic', 'classification': 'image_label'}  # by task of a folder
FILES = {'labels': 'detection', 'semantic': 'semantic', 'image_label': 'classification'}
INSTANCES = 'vitdense.tasks.mask_classification.InstanceTask'
# Arguments of transforms that are pixels of the resized image
PIXELS = {
    'MultiScaleCrop': ('sizes', 'max_size', 'before', 'crop'),
    'LargeScaleJitter': ('size',),
    'RandomResize': ('scale',),
    'ResizeShortSide': ('size', 'max_size'),
    'ResizeTo': ('size',),
    'RandomResizedCrop': ('size',),
    'RandomCrop': ('size',),
    'Pad': ('size',),
}
WINDOWS = ('RandomCrop', 'Pad')  # they cut windows of what was resized
CELL = 32  # pixels: sizes of which one is drawn are multiples of it


def head_of(model: Mapping[str, Any], task: str, *, where: str) -> str:
    """Return the name of the one head of a model recipe, which is for `task`, a key of `FIELDS`. Raises ConfigError."""
    fields = {name: field_of(each) for name, each in model['tasks'].items()}
    fitting = [name for name, field in fields.items() if field == FIELDS[task]]
    if not fitting:
        known = {field: name for name, field in FIELDS.items()}
        tasks = ', '.join(f'{name} ({known.get(field, field)})' for name, field in fields.items())
        raise ConfigError(
            f'the model has no head for {task}, which is what the folder has labels for',
            where=where,
            why=f'its heads: {tasks}',
            fix=f'choose a model of {task}; or train a new head on its backbone: train.py CONFIG --add-head NAME',
        )
    if len(fields) > 1:
        raise ConfigError(
            f'the model has {len(fields)} heads, and the folder has labels for one task',
            where=where,
            why=f'training changes the backbone that {", ".join(fields)} share',
            fix=f'give one head: merge_heads.py {where} --split {where}/heads, then --model {where}/heads/'
            f'{fitting[0]}.json',
        )
    return fitting[0]


def training_sections(
    model: Mapping[str, Any], transforms: Sequence[Mapping[str, Any]], head: str, training: str | None = None
) -> tuple[dict[str, Any], str]:
    """Return all sections of a config that trains the model recipe `model`, but for the data, and the file that they
    come from.

    `transforms` are the model's recipes of evaluation and `head` its head. `training` is a config whose sections are
    taken, all but its model; by default that of the task in `configs/_base_/training`. Its sizes of training images are
    scaled as the model's evaluation differs from its own.
    """
    task = model['tasks'][head]
    kind = 'instances' if task['type'] == INSTANCES else FILES[field_of(task)]
    path = find_config(training or f'configs/_base_/training/{kind}.py')
    content = read_config(path, KEYS)
    theirs, tiler = content.pop('model', None) or {}, model.get('tiler')
    before = list(content['val_dataloader']['dataset']['transforms'].values())
    steps = content['train_dataloader']['dataset']['transforms']
    sizes = (_side(before), _side(transforms)), (_window(before, theirs.get('tiler')), _window(transforms, tiler))
    square = any(_kind(step) == 'ResizeTo' for step in transforms)
    content['train_dataloader']['dataset']['transforms'] = _resized(steps, *sizes, square=square)
    content['val_dataloader']['dataset']['transforms'] = list(transforms)
    _name_head(content, head)
    text = 'data pipeline, optimizer and schedule are those of %s, for images of %s'
    logger.info(text, path, f'{sizes[1][1]} pixels' if sizes[1][1] else 'their own size')
    return {'model': dict(model), **content}, str(path)


def _kind(step: Mapping[str, Any]) -> str:
    return str(step['type']).rpartition('.')[2]


def _side(transforms: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the short side to which evaluation resizes images; None where it does not."""
    for step in transforms:
        if _kind(step) in ('ResizeTo', 'ResizeShortSide', 'EvaluationCrop'):
            size = step.get('size') or 224
            return size if isinstance(size, int) else min(size)
    return None


def _window(transforms: Sequence[Mapping[str, Any]], tiler: Mapping[str, Any] | None) -> int | None:
    """Return the side of the windows that are evaluated."""
    size = (tiler or {}).get('size') or _side(transforms)
    return size if isinstance(size, int | None) else min(size)


def _resized(
    steps: Mapping[str, Any], sides: tuple[int | None, ...], windows: tuple[int | None, ...], *, square: bool
) -> dict[str, Any]:
    """Return training transforms whose sizes are scaled from one side to the other, those of windows by their own."""
    resized = {}
    for name, step in steps.items():
        kind = _kind(step)
        if kind == 'RandomResize' and sides[1] is None:
            continue  # images are evaluated at their own scale
        before, after = windows if kind in WINDOWS else sides
        factor = after / before if before and after else 1
        changes = {key: _scaled(step[key], factor, key) for key in PIXELS.get(kind, ()) if key in step}
        changes |= {'square': square} if kind == 'MultiScaleCrop' else {}
        resized[name] = {**step, **changes}
    return resized


def _scaled(value: Any, factor: float, key: str) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_scaled(item, factor, key) for item in value)
    if key == 'sizes':
        return max(round(value * factor / CELL), 1) * CELL if factor != 1 else value
    return round(value * factor)


def _name_head(content: dict[str, Any], head: str) -> None:
    """Let metrics and the choice of the best weights read the head of that name."""
    before = {metric['head'] for metric in content['val_evaluator']}
    for metric in content['val_evaluator']:
        metric['head'] = head
    best = (content.get('checkpoint') or {}).get('best')
    if isinstance(best, str) and best.partition('/')[0] in before:
        content['checkpoint']['best'] = f'{head}/{best.partition("/")[2]}'
