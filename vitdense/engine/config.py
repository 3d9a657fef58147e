"""Config files: what may stand in one, how it is read, changed from the command line, and written down.

A config is new-style mmengine Python (`with read_base(): ...`). **It is code and it runs when it is read**: load only
configs that you would run as a program. What it leaves behind is data only: numbers, words, lists, dicts, and classes
under the key `type`. Rules: no `def` and no calls but `dict(...)` and methods of dicts; a class stands only at `type`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from vitdense.engine.config_files import find_config, read_config
from vitdense.engine.config_sections import FOLLOWS
from vitdense.engine.overrides import apply_options
from vitdense.errors import ConfigError, did_you_mean
from vitdense.registry import resolve

# Sections with fixed keys, and their defaults. Of a section that may be None, the second line is what it may hold.
SECTIONS: dict[str, dict[str, Any]] = {
    'optim_wrapper': dict(optimizer=None, groups=None, clip_grad=None, accumulative_counts=1),
    'schedule': dict(
        max_iters=None,
        max_epochs=None,
        val_interval=None,
        warmup_iters=0,
        warmup_ratio=1e-6,
        backbone_warmup_iters=0,
        decay='poly',
        power=1.0,
        milestones=(),
        gamma=0.1,
        min_ratio=0.0,
    ),
    'checkpoint': dict(interval=None, keep=2, best=None, rule='greater'),
}
OPTIONAL_SECTIONS: dict[str, dict[str, Any]] = {
    'ema': dict(momentum=0.0002),
    'early_stopping': dict(monitor=None, rule='greater', patience=5, min_delta=0.0),
    'add_head': dict(name=None, weights=None, transforms=None),  # `transforms` are noted by the run itself
}
LOADER_KEYS = ('batch_size', 'num_workers', 'dataset')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
VALUES: dict[str, Any] = dict(
    ema=None,
    early_stopping=None,
    add_head=None,
    loggers=(),
    seed=0,
    amp='auto',
    custom_hooks=(),
    sample_pictures=8,
)
# `data_root` is handed to every data set as `root`
KEYS = ('model', *LOADERS, 'val_evaluator', 'test_evaluator', *SECTIONS, *VALUES, 'work_dir', 'data_root')
WORDS = {
    'amp': ('auto', 'bf16', 'fp16', 'off'),
    'schedule.decay': ('poly', 'cosine', 'step', 'constant'),
    'checkpoint.rule': ('greater', 'less'),
    'early_stopping.rule': ('greater', 'less'),
}


def load_config(path: str | Path, options: Sequence[str] = (), *, workers: int | None = None) -> Config:
    """Return the config at `path`, completed with defaults, changed by `options` and checked.

    `path` may also be `configs/...` of the installed package. `options` are `K=V` words (see
    `vitdense.engine.overrides`); `workers` is the number of workers of every loader. In the result every class is
    written as its dotted path, so that it can be copied, dumped and compared, and no two sections share an object.
    A test section that is absent, or the same as that of validation, is a copy of the latter as `options` leave it.

    Raises ConfigError, naming the file, for a file that cannot be read, an unknown key (with the nearest match), a
    `type` that cannot be imported, and values that are not data.
    """
    path = find_config(path)
    content = read_config(path, KEYS)
    _check_keys(content, KEYS, where=str(path))
    _complete(content)
    _apply(content, options)
    for _, section in _loader_sections(content):
        if workers is not None and isinstance(section, dict):
            section['num_workers'] = workers
    _check(content, str(path))
    cfg = Config(content)
    object.__setattr__(cfg, '_filename', str(path))
    return cfg


def _apply(content: dict[str, Any], options: Sequence[str]) -> None:
    """Apply the options; those of test sections come last, to what the others have made of validation's."""
    for test, val in FOLLOWS.items():
        if test in content and content[test] == content.get(val):
            del content[test]
    of_test = [option.lstrip('+').startswith(tuple(FOLLOWS)) for option in options]
    apply_options(content, [option for option, late in zip(options, of_test, strict=True) if not late])
    for test, val in FOLLOWS.items():
        if content.get(val) is not None:
            content.setdefault(test, copy.deepcopy(content[val]))
    apply_options(content, [option for option, late in zip(options, of_test, strict=True) if late])


def named_sections(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the loaders of a config's loader section by name: several, or one whose name is ''."""
    return {'': section} if 'dataset' in section else dict(section)


def picture_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of the data set whose transforms prepare pictures for the model.

    It is that of `test_dataloader`, else of `val_dataloader`, else of `train_dataloader`, the first of several.
    """
    section = content.get('test_dataloader') or content.get('val_dataloader') or content['train_dataloader']
    recipe = next(iter(named_sections(section).values()))['dataset']
    parts = recipe.get('datasets')  # of a mixture
    return next(iter(parts.values())) if isinstance(parts, Mapping) else recipe


def dump_config(cfg: Config | Mapping[str, Any], path: str | Path) -> None:
    """Write `cfg` as a Python file that `load_config` reads back to the same config. Nothing is imported there."""
    Path(path).write_text(config_text(cfg), encoding='utf-8')


def config_text(cfg: Config | Mapping[str, Any]) -> str:
    """Return the text that `dump_config` writes."""
    content = cfg.to_dict() if isinstance(cfg, Config) else cfg
    return ''.join(f'{key} = {_source(value, 0)}\n' for key, value in content.items())


def _source(value: Any, depth: int) -> str:
    """Return `value` as Python source, broken into lines where it is long."""
    if isinstance(value, Mapping) and all(isinstance(key, str) and key.isidentifier() for key in value):
        parts, ends = [f'{key}={_source(item, depth + 1)}' for key, item in value.items()], ('dict(', ')')
    elif isinstance(value, Mapping):
        parts, ends = [f'{key!r}: {_source(item, depth + 1)}' for key, item in value.items()], ('{', '}')
    elif isinstance(value, list | tuple):
        parts, ends = (
            [_source(item, depth + 1) for item in value],
            ('[', ']') if isinstance(value, list) else ('(', ')'),
        )
    else:
        return repr(value)
    line = ends[0] + ', '.join(parts) + (',' if isinstance(value, tuple) and len(parts) == 1 else '') + ends[1]
    if len(line) + 4 * depth <= 100 and '\n' not in line:
        return line
    indent = '    ' * (depth + 1)
    return ends[0] + '\n' + ''.join(f'{indent}{part},\n' for part in parts) + '    ' * depth + ends[1]


def _check_keys(content: Mapping[str, Any], known: Sequence[str], *, where: str, prefix: str = '') -> None:
    for key in content:
        if key not in known:
            raise ConfigError(
                f"unknown key '{prefix}{key}'{did_you_mean(key, known)}",
                where=where,
                why=f'the keys {"of " + prefix[:-1] if prefix else "of a config"} are: {", ".join(known)}',
                fix=f"remove or rename '{prefix}{key}'",
            )


def _complete(content: dict[str, Any]) -> None:
    """Fill in defaults, so that every option can be named and the dumped config says everything."""
    for key, default in VALUES.items():
        content.setdefault(key, copy.deepcopy(default))
    for key, defaults in {**SECTIONS, **OPTIONAL_SECTIONS}.items():
        given = content.get(key)
        if isinstance(given, dict):
            content[key] = {**given, **{name: value for name, value in defaults.items() if name not in given}}


def _check(content: dict[str, Any], file: str) -> None:
    """Raise ConfigError unless sections, words and types of the complete config are right."""
    for key, known in {**SECTIONS, **OPTIONAL_SECTIONS}.items():
        if isinstance(content.get(key), dict):
            _check_keys(content[key], tuple(known), where=file, prefix=f'{key}.')
        elif content.get(key) is not None:
            raise ConfigError(
                f'{key} is {content[key]!r}',
                where=file,
                why=f'{key} is a dict with the keys {", ".join(known)}',
                fix=f'write {key} = dict({next(iter(known))}=...)',
            )
    for key, section in _loader_sections(content):
        _check_keys(section, LOADER_KEYS, where=file, prefix=f'{key}.')
    _check_sets(content, file)
    for key, words in WORDS.items():
        section, _, name = key.rpartition('.')
        holder = content.get(section) if section else content
        if isinstance(holder, dict) and name in holder and holder[name] not in words:
            raise ConfigError(
                f'{key} is {holder[name]!r}{did_you_mean(holder[name], words)}',
                where=file,
                why=f'{key} is one of {", ".join(words)}',
                fix=f'choose one of {", ".join(words)}',
            )
    _check_counts(content, file)
    for key, kind in _types(content, ''):
        try:
            resolve(kind)
        except ConfigError as error:
            raise ConfigError(error.message, where=f'{file}: {key} = {kind!r}', why=error.why, fix=error.fix) from error


def _loader_sections(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every loader section with its key; of several sets the sections are `val_dataloader.NAME`."""
    for key in LOADERS:
        section = content.get(key) or {}
        several = key != 'train_dataloader' and section and all(isinstance(item, dict) for item in section.values())
        if several and 'dataset' not in section:
            yield from ((f'{key}.{name}', item) for name, item in section.items())
        elif section:
            yield key, section


def _check_sets(content: dict[str, Any], file: str) -> None:
    """Raise ConfigError unless evaluators are named as the sets that they score."""
    for kind in ('val', 'test'):
        section, metrics = content.get(f'{kind}_dataloader') or {}, content.get(f'{kind}_evaluator') or ()
        sets = list(named_sections(section)) if section else ['']
        named = list(metrics) if isinstance(metrics, Mapping) else ['']
        if section and set(sets) != set(named):
            form = ', '.join(f'{name}=[...]' for name in sets)
            raise ConfigError(
                f'{kind}_evaluator does not fit {kind}_dataloader',
                where=file,
                why=f'the sets are {", ".join(sets) if section and sets != [""] else "one without a name"}, '
                f'the evaluators {", ".join(named) if named != [""] else "one list"}',
                fix=f'write {kind}_evaluator = ' + (f'dict({form})' if sets != [''] else '[dict(type=...)]'),
            )


def _check_counts(content: dict[str, Any], file: str) -> None:
    """Raise ConfigError for a seed, a batch size or a number of workers that cannot be."""
    counts = [('seed', content['seed'], 0, 2**32 - 1)]
    for key, loader in _loader_sections(content):
        counts += [
            (f'{key}.{name}', loader[name], least, None)
            for name, least in (('batch_size', 1), ('num_workers', 0))
            if name in loader
        ]
    for key, value, least, most in counts:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            limits = f'from {least} on' if most is None else f'from {least} to {most}'
            raise ConfigError(
                f'{key} is {value!r}', where=file, why=f'it is a whole number {limits}', fix=f'give {key} such a number'
            )


def _types(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every `(key path, type)` of the config."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == 'type':
                yield f'{key}.type', item
            else:
                yield from _types(item, f'{key}.{name}' if key else name)
    elif isinstance(value, list | tuple):
        for row, item in enumerate(value):
            yield from _types(item, f'{key}.{row}')
