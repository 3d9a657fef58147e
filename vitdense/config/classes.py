"""The classes of a config, also where its data is absent."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitdense.config.run_config import RunConfig
from vitdense.data.class_names import read_classes, read_palette
from vitdense.data.datasets import build_dataset
from vitdense.errors import ConfigError, DataError
from vitdense.registry import resolve

FIELDS = ('labels', 'semantic', 'image_label')


def metainfo_of(cfg: RunConfig, *, num_classes: int | None = None) -> dict[str, Any]:
    """Return the metainfo (`classes`, ...) of a config's data, else of the class names in the config.

    With `num_classes` it has that many placeholders.

    Raises ConfigError where the number of classes is not known.
    """
    if num_classes is not None:
        return {'classes': dict.fromkeys(FIELDS, [f'class {number}' for number in range(num_classes)])}
    recipe = section_of(cfg).get('dataset') or {}
    try:
        return build_dataset(recipe, root=cfg.get('data_root')).metainfo
    except (DataError, ConfigError) as error:
        names = _named(recipe.get('classes'))
        if names is None:
            raise ConfigError(
                'the number of classes is not known',
                where=str(cfg.filename),
                why=f'the data is not there ({error.message}), and the config does not name the classes',
                fix='give --num-classes K',
            ) from error
        return named_metainfo(names)


def named_metainfo(names: Sequence[str], fields: Iterable[str] = FIELDS) -> dict[str, Any]:
    """Return metainfo with the classes `names`, and colours, for all `fields`."""
    return {'classes': dict.fromkeys(fields, names), 'palette': dict.fromkeys(fields, read_palette(None, names))}


def section_of(cfg: RunConfig) -> Mapping[str, Any]:
    """Return the loader section that says how images are evaluated; empty where there is none."""
    return cfg.get('test_dataloader') or cfg.get('val_dataloader') or cfg.get('train_dataloader') or {}


def _named(classes: Any) -> Sequence[str] | None:
    try:
        return list(read_classes(classes).values())
    except (ConfigError, TypeError):
        return None


def field_of(task: Mapping[str, Any]) -> str:
    """Return the field of `Target` that the task of a recipe reads."""
    kind = resolve(task.get('type'))
    parameter = inspect.signature(kind).parameters.get('field')
    return task.get('field', kind.field if parameter is None else parameter.default)
