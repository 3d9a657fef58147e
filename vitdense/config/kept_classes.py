"""`--keep-classes` as a section of the config."""

from __future__ import annotations

from dataclasses import fields

from vitdense.config.classes import field_of
from vitdense.config.run_config import RunConfig
from vitdense.config.schema import KeepClassesSection
from vitdense.errors import ConfigError, some


def with_kept_classes(cfg: RunConfig, keep: bool, weights: str | None) -> RunConfig:
    """Return the config with `--keep-classes --weights PATH` as its `keep_classes`. Raises ConfigError without a model
    whose classes are kept, and for heads of other kinds than boxes, masks and label maps.
    """
    if not keep and not cfg.get('keep_classes'):
        return cfg
    defaults = {field.name: field.default for field in fields(KeepClassesSection)}
    section = {**defaults, **(cfg.get('keep_classes') or {})}
    section['weights'] = weights or section['weights']
    if not section['weights'] or cfg.get('add_head'):
        raise ConfigError(
            'there is no trained model whose classes could be kept',
            where='--keep-classes',
            why='they are those of a trained model with the same heads, and a new head (--add-head) has none',
            fix='add --weights WORK_DIR/model, or give --model MODEL in place of CONFIG',
        )
    other = [name for name, task in cfg.model.tasks.items() if field_of(task) not in ('labels', 'semantic')]
    if other:
        raise ConfigError(
            f'the classes of {some(other)} cannot be kept',
            where='--keep-classes',
            why='an image without a label of an old class has no other place for it; boxes and pixels have',
            fix='train a classifier on images of all classes, old ones too, with --weights',
        )
    return cfg.replaced(keep_classes=section)
