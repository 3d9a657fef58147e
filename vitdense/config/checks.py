"""Checks of whole configs: types and ranges of every section and of every argument of a part."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NoReturn, get_args

from vitdense.config.schema import (
    COUNT,
    FACTOR,
    PART,
    POSITIVE,
    SHARE,
    SIZE,
    ConfigFile,
    LoaderSection,
    TrainingLoaderSection,
)
from vitdense.config.value_types import ANY, Limits, Unfit, describe, fit, hints_of, is_section
from vitdense.errors import ConfigError, did_you_mean
from vitdense.registry import parameters_of, resolve

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Numbers of parts of vitdense, by the name of their argument; those that are not named are 0 or more. A part may
# refuse more by itself.
LIMITS: dict[str, Limits] = {
    **dict.fromkeys(('offset', 'layer', 'layers', 'level', 'aux_index', 'gamma_init', 'rotation', 'ignore'), ANY),
    **dict.fromkeys(('label_map', 'palette', 'classes'), ANY),
    **dict.fromkeys(('num_workers', 'num_encoder_layers', 'num_upscales'), COUNT),
    **dict.fromkeys(('img_size', 'patch_size', 'max_size', 'size', 'sizes', 'stride', 'divisor', 'split'), SIZE),
    **dict.fromkeys(('crop', 'before', 'pool_scales', 'max_pixels'), SIZE),
    **dict.fromkeys(('channels', 'aux_channels', 'prior_channels', 'decoder_channels', 'detail_channels'), SIZE),
    **dict.fromkeys(('embed_dim', 'ffn_dim', 'rank', 'groups', 'cross_heads', 'decoder_heads', 'decoder_depth'), SIZE),
    **dict.fromkeys(('depth', 'bins', 'batch', 'batches', 'interval', 'top_k', 'steps', 'proposals_per_object'), SIZE),
    **dict.fromkeys(('temperature', 'scale', 'scales', 'ratio', 'radius', 'ffn_ratio'), POSITIVE),
    **dict.fromkeys(('deform_ratio', 'value_ratio', 'mlp_ratio', 'oversample'), POSITIVE),
    **dict.fromkeys(('probability', 'importance', 'mask_ratio', 'erase', 'cutmix_share', 'threshold'), SHARE),
    **dict.fromkeys(('max_category_fraction', 'begin', 'end'), SHARE),
    **dict.fromkeys(('decay', 'crop_pct'), FACTOR),
    **dict.fromkeys(('drop_path', 'dropout', 'label_smoothing', 'drop_rate', 'proj_drop_rate', 'attn_drop_rate'), PART),
    **dict.fromkeys(('pos_drop_rate', 'patch_drop_rate', 'drop_path_rate'), PART),
}
# An attribute that the class at a key must have
NEEDS = (
    (r'model', 'train_step', 'a model, such as vitdense.model.DenseModel'),
    (r'model\.network(\.backbone|\.branches\.[^.]+\.(adapter|head))?', 'forward', 'a torch.nn.Module'),
    (r'model\.tasks\.[^.]+', 'predict', 'a task'),
    (r'(train|val|test)_dataloader\.([^.]+\.)?dataset', '__getitem__', 'a data set'),
    (r'(val|test)_evaluator\.([^.]+\.)?\d+', 'process', 'a metric'),
    (r'optim_wrapper\.optimizer', 'add_param_group', 'an optimizer, such as torch.optim.AdamW'),
    (r'optim_wrapper\.groups', 'groups', 'a rule for groups of parameters, such as vitdense.train.optim.LayerDecay'),
    (r'custom_hooks\.\d+', 'before_run', 'a hook of mmengine'),
)
OPTIMIZERS = {'betas': PART, 'momentum': PART}
MAY_BE_EMPTY = ('no_decay', 'global_blocks', 'ignore', 'timm_args', 'lr_of', 'loss_weights')


def check_config(content: dict[str, Any], file: str, options: Mapping[str, str] | None = None) -> None:
    """Raise ConfigError, with the key and what is allowed, for anything that cannot be in the complete config.

    `options` are the values of a command line as they were spelt, by key; where a path or a name is meant, what looks
    like a number becomes a string in `content`.
    """
    _Check(file, dict(options or {})).section(content, ConfigFile, '')


def check_keys(content: Mapping[str, Any], file: str) -> None:
    """Raise ConfigError for a top-level name of a config that is no section."""
    known = [field.name for field in fields(ConfigFile)]
    for name in content:
        if name not in known:
            _Check(file, {}).unknown(name, name, known, '')


class _Check:
    """The check of one config."""

    def __init__(self, file: str, options: dict[str, str]) -> None:
        self.file = file
        self.options = options

    def section(self, content: Mapping[str, Any], kind: Any, key: str) -> None:
        """Check a section of the config, or all of it."""
        known = [field.name for field in fields(kind)]
        hints, prefix = hints_of(kind), f'{key}.' if key else ''
        for name in content:
            if name not in known:
                self.unknown(f'{prefix}{name}', name, known, key)
        for field in fields(kind):
            if field.default is MISSING and field.name not in content:
                self.refuse(Unfit(f'{prefix}{field.name}', None, describe(hints[field.name])), missing=True)
        for name, value in content.items():
            if kind is ConfigFile and name in LOADERS:
                self.loaders(value, name)
                continue
            inner = next((each for each in (hints[name], *get_args(hints[name])) if is_section(each)), None)
            if inner is not None and isinstance(value, Mapping):
                self.section(value, inner, f'{prefix}{name}')
            else:
                content[name] = self.value(value, hints[name], f'{prefix}{name}', ANY)
                self.parts(value, f'{prefix}{name}')

    def loaders(self, value: Any, key: str) -> None:
        """Check a loader section, or several by name."""
        several = key != 'train_dataloader' and isinstance(value, Mapping) and 'dataset' not in value
        if several and value and all(isinstance(each, Mapping) for each in value.values()):
            for name, each in value.items():
                self.section(each, LoaderSection, f'{key}.{name}')
        elif isinstance(value, Mapping):
            self.section(value, TrainingLoaderSection if key == 'train_dataloader' else LoaderSection, key)
        else:
            self.value(value, LoaderSection | None, key, ANY)

    def parts(self, value: Any, key: str) -> None:
        """Check every part within `value`, and that numbers are finite."""
        if isinstance(value, Mapping):
            if 'type' in value:
                self.part(value, key)
            for name, item in value.items():
                self.parts(item, f'{key}.{name}')
        elif isinstance(value, list | tuple):
            for row, item in enumerate(value):
                self.parts(item, f'{key}.{row}')
        elif isinstance(value, float) and not math.isfinite(value):
            self.refuse(Unfit(key, value, 'a finite number'))

    def part(self, recipe: dict[str, Any], key: str) -> None:
        """Check the arguments of one part."""
        kind = self.resolved(recipe['type'], key)
        for pattern, attribute, what in NEEDS:
            if re.fullmatch(pattern, key) and inspect.isclass(kind) and not hasattr(kind, attribute):
                self.refuse(Unfit(f'{key}.type', recipe['type'], what))
        parameters, hints = parameters_of(kind), hints_of(kind)
        for name in [name for name in recipe if name != 'type']:
            if parameters is None:
                break
            if name not in parameters:
                self.unknown(f'{key}.{name}', name, list(parameters), key, kind.__name__)
            parameter = parameters[name]
            hint = hints.get(name, inspect.Parameter.empty)
            if hint is inspect.Parameter.empty and _is_optimizer(kind):
                hint = _hint_of(parameter.default)
            limits = _limits(kind, name, parameter.default)
            recipe[name] = self.value(recipe[name], hint, f'{key}.{name}', limits)
            if isinstance(recipe[name], Mapping) and _is_ours(kind):  # arguments that are handed on, as to timm
                self.numbers(recipe[name], f'{key}.{name}')

    def numbers(self, values: Mapping[str, Any], key: str) -> None:
        """Check the numbers of a plain dict by their names."""
        for name, value in values.items():
            limits = LIMITS.get(name, SIZE if str(name).startswith('num_') else ANY)
            if isinstance(value, int | float) and not isinstance(value, bool) and not limits.hold(value):
                self.refuse(Unfit(f'{key}.{name}', value, describe(type(value), limits)))

    def resolved(self, kind: Any, key: str) -> Any:
        try:
            return resolve(kind)
        except ConfigError as error:
            where = f'{self.file}: {key}.type = {kind!r}'
            raise ConfigError(error.message, where=where, why=error.why, fix=error.fix) from error

    def value(self, value: Any, hint: Any, key: str, limits: Limits) -> Any:
        """Return the value at `key`, a number as a string where one is expected."""
        try:
            return fit(value, hint, key, limits, self.options.get(key))
        except Unfit as error:
            self.refuse(error)

    def unknown(self, key: str, name: str, known: Sequence[str], section: str, part: str = '') -> NoReturn:
        fix = f"remove or rename '{key}'"
        if name == 'num_classes':
            fix = 'remove it: the number of classes comes from the data; classes=[...] of a data set names them'
        message = f"{part} takes no argument '{name}'" if part else f"unknown key '{key}'"
        holder = f'arguments of {part}' if part else f'keys of {section or "a config"}'
        raise ConfigError(
            f'{message}{did_you_mean(name, [each for each in known if each != name])}',
            where=self.where(key),
            why=f'the {holder} are: {", ".join(known)}',
            fix=fix,
        )

    def refuse(self, error: Unfit, *, missing: bool = False) -> NoReturn:
        words = 'is missing' if missing else f'is {error.value!r}'
        raise ConfigError(
            f'{error.key} {words}{error.hint}',
            where=self.where(error.key),
            why=f'it is {error.allowed}',
            fix=error.fix or f'give {error.key} {error.allowed}',
        )

    def where(self, key: str) -> str:
        """Return the option that gave `key` a value, or the file."""
        matching = [name for name in self.options if f'{key}.'.startswith(f'{name}.')]
        return f'--cfg-options {matching[-1]}={self.options[matching[-1]]}' if matching else f'{self.file}: {key}'


def _is_ours(kind: Any) -> bool:
    return str(kind.__module__).startswith('vitdense.')


def _is_optimizer(kind: Any) -> bool:
    return any(each.__name__ == 'Optimizer' for each in getattr(kind, '__mro__', ()))


def _hint_of(default: Any) -> Any:
    """Return the annotation that a default stands for, where an optimizer has none."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):
        return float
    return Sequence[float] if isinstance(default, tuple) else inspect.Parameter.empty


def _limits(kind: Any, name: str, default: Any) -> Limits:
    if _is_optimizer(kind):
        return OPTIMIZERS.get(name, COUNT)
    if not _is_ours(kind):
        return ANY
    limits = LIMITS.get(name, SIZE if name.startswith('num_') else COUNT)
    empty = isinstance(default, list | tuple) and not default
    return limits._replace(empty=empty or name in MAY_BE_EMPTY)
