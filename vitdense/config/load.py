"""Loading of config files: defaults, options of the command line, and checks.

A config is new-style mmengine Python (`with read_base(): ...`). **It is code and it runs when it is read**: load only
configs that you would run as a program. What it leaves behind is data only: numbers, words, lists, dicts, and classes
under the key `type`. Rules: no `def` and no calls but `dict(...)` and methods of dicts; a class stands only at `type`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from vitdense.arguments import check
from vitdense.config.checks import LOADERS, check_config, check_keys
from vitdense.config.data_config import SUFFIXES, read_data_config
from vitdense.config.locate import find_config, read_config
from vitdense.config.overrides import apply_options
from vitdense.config.own_data import use_folder
from vitdense.config.run_config import RunConfig
from vitdense.config.schema import (
    AddHeadSection,
    CheckpointSection,
    ConfigFile,
    EarlyStoppingSection,
    EmaSection,
    KeepClassesSection,
    OptimSection,
    ScheduleSection,
)
from vitdense.config.sections import FOLLOWS
from vitdense.errors import ConfigError

KEYS = tuple(field.name for field in fields(ConfigFile))
# The types of sections that may be absent; where they are given, their defaults are filled in.
SECTION_TYPES = {
    'optim_wrapper': OptimSection,
    'schedule': ScheduleSection,
    'checkpoint': CheckpointSection,
    'ema': EmaSection,
    'early_stopping': EarlyStoppingSection,
    'add_head': AddHeadSection,
    'keep_classes': KeepClassesSection,
}
# Top-level keys that get their default where a config does not give them.
DEFAULTED_KEYS = (
    'ema',
    'early_stopping',
    'add_head',
    'keep_classes',
    'loggers',
    'seed',
    'amp',
    'parallel',
    'custom_hooks',
    'sample_images',
)


def load_config(
    path: str | Path,
    options: Sequence[str] = (),
    *,
    workers: int | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    held_out: float | None = None,
    safe: bool = False,
) -> RunConfig:
    """Return the config at `path`, completed with defaults, changed by `options` and checked.

    `path` may also be `configs/...` of the installed package. `options` are `K=V` words (see
    `vitdense.config.overrides`); `workers` is the number of workers of every loader; `data` is a folder whose splits
    are read in place of the config's data, `split` that of the test section, `held_out` as in `use_folder`. With `safe`
    only data-only configs are read (`vitdense.config.data_config`). In the result every class is written as its dotted
    path, so that it can be copied, dumped and compared, and no two sections share an object. A test section that is
    absent, or the same as that of validation, is a copy of the latter as `options` leave it.

    Raises ConfigError, naming the file, for a file that cannot be read, an unknown key (with the nearest match), a
    `type` that cannot be imported, and a value that its key or the argument of its part does not allow.
    """
    path = find_config(path)
    data_only = path.suffix in SUFFIXES
    why = 'a Python config is code, and runs when it is read'
    check(
        data_only or not safe, '--safe', str(path), why, 'give a data-only config (.json, .yaml), or leave --safe out'
    )
    content = read_data_config(path) if data_only else read_config(path, KEYS)
    check_keys(content, str(path))
    if data is not None:
        use_folder(content, data, file=str(path), split=split, held_out=held_out)
    return complete_config(content, str(path), options, workers=workers)


def complete_config(
    content: dict[str, Any], file: str, options: Sequence[str] = (), *, workers: int | None = None
) -> RunConfig:
    """Return the sections `content` completed and checked as `load_config` does; `file` is where they come from."""
    _complete(content)
    spelt = _apply(content, options)
    _complete(content)  # options may have brought sections
    for _, section in loader_sections(content):
        if workers is not None and isinstance(section, dict):
            section['num_workers'] = workers
    check_config(content, file, spelt)
    _check_sets(content, file)
    return RunConfig(content, file)


def _apply(content: dict[str, Any], options: Sequence[str]) -> dict[str, str]:
    """Apply the options; those of test sections come last, to what the others have made of validation's.

    Returns the values of the options as they are spelt, by key.
    """
    for test, val in FOLLOWS.items():
        if test in content and content[test] == content.get(val):
            del content[test]
    of_test = [option.lstrip('+').startswith(tuple(FOLLOWS)) for option in options]
    spelt = apply_options(content, [option for option, late in zip(options, of_test, strict=True) if not late])
    for test, val in FOLLOWS.items():
        if content.get(val) is not None and test not in content:
            content[test] = copy.deepcopy(content[val])
            spelt |= {key.replace(val, test, 1): text for key, text in spelt.items() if key.startswith(val)}
    return spelt | apply_options(content, [option for option, late in zip(options, of_test, strict=True) if late])


def named_sections(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the loaders of a config's loader section by name: several, or one whose name is ''."""
    return {'': section} if 'dataset' in section else dict(section)


def image_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of the data set whose transforms prepare images for the model.

    It is that of `test_dataloader`, else of `val_dataloader`, else of `train_dataloader`, the first of several; its
    `transforms` are a list, with or without names in the config.
    """
    section = content.get('test_dataloader') or content.get('val_dataloader') or content['train_dataloader']
    recipe = next(iter(named_sections(section).values()))['dataset']
    parts = recipe.get('datasets')  # of a mixture
    recipe = next(iter(parts.values())) if isinstance(parts, Mapping) else recipe
    steps = recipe.get('transforms') or []
    return {**recipe, 'transforms': list(steps.values() if isinstance(steps, Mapping) else steps)}


def _complete(content: dict[str, Any]) -> None:
    """Fill in defaults, so that every option can be named and the dumped config is complete."""
    for name in DEFAULTED_KEYS:
        content.setdefault(name, getattr(ConfigFile, name))
    for key, kind in SECTION_TYPES.items():
        if isinstance(content.get(key), dict):
            missing = [field for field in fields(kind) if field.name not in content[key]]
            content[key].update({field.name: field.default for field in missing if field.default is not MISSING})


def loader_sections(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every loader section with its key; of several sets the sections are `val_dataloader.NAME`."""
    for key in LOADERS:
        section = content.get(key)
        if isinstance(section, dict) and section:
            several = key != 'train_dataloader' and 'dataset' not in section
            yield from ((f'{key}.{name}', item) for name, item in section.items()) if several else [(key, section)]


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
        if section and not metrics:
            raise ConfigError(
                f'{kind}_dataloader has no metric',
                where=f'{file}: {kind}_evaluator',
                why='the predictions would be made, and not scored',
                fix=f'write {kind}_evaluator = [dict(type=...)], or {kind}_dataloader = None',
            )
