"""Numbers of classes that a config states, against those that its data has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitdense.config.classes import field_of
from vitdense.config.run_config import RunConfig
from vitdense.errors import ConfigError

SHOWN = 20  # names of classes


def check_class_counts(cfg: RunConfig, metainfo: Mapping[str, Any]) -> None:
    """Raise ConfigError, before any weight is made, where the model states another number of classes than `metainfo`.

    The error names the classes, the key and the line of the config.
    """
    model = cfg.model
    for key, name, stated in _stated(model):
        task = (model.get('tasks') or {}).get(name)
        classes = metainfo['classes'].get(field_of(task)) if isinstance(task, dict) else None
        if classes is None or stated == len(classes):
            continue
        names = ', '.join(map(str, classes[:SHOWN])) + (', ...' if len(classes) > SHOWN else '')
        raise ConfigError(
            f"the config gives '{name}' {stated} classes, but the data has {len(classes)}",
            where=f'{_line(Path(cfg.filename or ""), stated)}: {key}',
            why=f'the classes of the data are: {names}',
            fix=f'remove {key}: the number of classes is a fact of the data; to train on some of the classes,\n'
            'name them: classes=[...] of every data set',
        )


def _stated(model: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield the key, the branch and the number wherever the recipe of a model states a number of classes."""
    network = model.get('network') or {}
    parts = {f'model.tasks.{name}': (name, task) for name, task in (model.get('tasks') or {}).items()}
    for name, branch in (network.get('branches') or {}).items():
        parts[f'model.network.branches.{name}.head'] = (name, branch.get('head'))
    for key, (name, part) in parts.items():
        if isinstance(part, dict) and isinstance(part.get('num_classes'), int):
            yield f'{key}.num_classes', name, part['num_classes']
    stated = network.get('num_classes')
    for name, number in stated.items() if isinstance(stated, dict) else ():
        yield f'model.network.num_classes.{name}', name, number


def _line(path: Path, stated: int) -> str:
    """Return `FILE:LINE` of the number in the config file; the file alone where it comes from a base or an option."""
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    pattern = re.compile(rf'num_classes\W+{stated}\b')
    return next((f'{path}:{number}' for number, line in enumerate(lines, 1) if pattern.search(line)), str(path))
