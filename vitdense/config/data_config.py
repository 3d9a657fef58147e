"""Data-only configs (JSON, YAML): no code, types of one table, files below the folder of the config.

A data-only config has the sections of any config, with class names in place of classes (`type: LinearHead`, see
`vitdense.config.safe_types`). It may come from anywhere: it imports nothing, downloads nothing, and names no file
outside of its own folder, to which `data_root`, `root`, `pretrained` and `weights` are relative.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vitdense.config.safe_types import SAFE_TYPES
from vitdense.data.files.listing import read_text
from vitdense.errors import ConfigError, did_you_mean, short
from vitdense.storage.atomic import parse_json

SUFFIXES = ('.json', '.yaml', '.yml')
MAX_BYTES = 10_000_000  # of a file
MAX_VALUES = 100_000  # also where YAML repeats them
MAX_DEPTH = 40
FILES = ('root', 'data_root', 'pretrained', 'weights')  # keys whose values are made relative to the folder
FORBIDDEN = {  # keys that would make a part import, run, download, read or write something else
    **dict.fromkeys(('custom_imports', '_base_', '_delete_'), 'a data-only config is whole, and imports nothing'),
    'work_dir': 'where results go is said on the command line: --work-dir',
    **dict.fromkeys(('checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'), 'it makes timm read'),
}


def read_data_config(path: Path) -> dict[str, Any]:
    """Return the sections of a data-only config, with dotted types and absolute paths. Raises ConfigError."""
    content = _parsed(path)
    if not isinstance(content, dict):
        raise _error(path, '', f'the file holds a {type(content).__name__}', 'a config is a mapping of sections')
    checked = _Reader(path).value(content, '', 0)
    checked['data_root'] = checked.get('data_root') or str(path.parent.resolve())
    return checked


def safe_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as the content of a data-only one. Raises ConfigError for types that none can name.

    Paths are those of `cfg`: they may have to be changed.
    """
    names = {path: name for name, path in SAFE_TYPES.items()}

    def plain(value: Any, key: str) -> Any:
        if isinstance(value, list | tuple):
            return [plain(item, f'{key}.{row}') for row, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        kind = value.get('type')
        if kind is not None and kind not in names:
            raise _error(Path(), f'{key}.type', f'{kind} is not in the table of types', _known(''))
        return {name: names[kind] if name == 'type' else plain(item, f'{key}.{name}') for name, item in value.items()}

    return {key: plain(value, key) for key, value in cfg.items() if value is not None and key != 'work_dir'}


def _parsed(path: Path) -> Any:
    try:
        text = read_text(path, MAX_BYTES)
        return parse_json(text) if path.suffix == '.json' else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise _error(path, '', f"cannot read '{path.name}'", ' '.join(str(error).split())[:300]) from error


class _Reader:
    """Checks every value of one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self.left = path, path.parent.resolve(), MAX_VALUES

    def value(self, value: Any, key: str, depth: int) -> Any:
        """Return a value of the config as it is used. Raises ConfigError with its key."""
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            raise self.error(key, 'the config is too large', f'{MAX_VALUES} values, {MAX_DEPTH} in each other')
        if isinstance(value, dict):
            return {name: self.item(name, item, key, depth) for name, item in value.items()}
        if isinstance(value, list):
            items = [self.value(item, f'{key}.{row}', depth + 1) for row, item in enumerate(value)]
            return items if any(isinstance(item, dict) for item in items) else tuple(items)
        if isinstance(value, str):
            self.check_path(value, key)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise _error(
            self.path, key, f'{short(value)} is no data of a config', 'it holds numbers, words, lists and dicts'
        )

    def item(self, name: Any, value: Any, above: str, depth: int) -> Any:
        key = f'{above}.{name}' if above else str(name)
        if not isinstance(name, str | int):
            raise self.error(key, f'the key {short(name)} is no word', 'keys are words')
        if name in FORBIDDEN:
            raise self.error(key, f"a data-only config has no '{name}'", FORBIDDEN[name])
        if name == 'type':
            if not isinstance(value, str) or value not in SAFE_TYPES:
                raise self.error(key, f'{short(value)} is not in the table of types', _known(value))
            return SAFE_TYPES[value]
        if name == 'pretrained' and value is True:
            why = f'weights would be downloaded; the user can ask for that: --cfg-options {key}=True'
            raise self.error(key, 'a data-only config downloads nothing', why)
        if (name == 'follow_links' and value) or (name == 'cache' and not isinstance(value, bool | None)):
            raise self.error(key, f'{short(value)} leads out of the folder of the config', 'files stay below it')
        if name == 'name' and ':' in str(value):
            raise _error(
                self.path, key, f'{short(value)} names a model of a hub', 'a data-only config downloads nothing'
            )
        if name == 'loggers' and value not in (None, [], ['tensorboard']):
            raise self.error(key, 'only tensorboard logs without the network', f'it is {short(value)}')
        value = self.value(value, key, depth + 1)
        return str(self.folder / value) if name in FILES and isinstance(value, str) else value

    def check_path(self, text: str, key: str) -> None:
        """Raise ConfigError for text that, as a path, leads out of the folder of the config."""
        parts = text.replace('\\', '/').split('/')
        outside = text[:1] in ('/', '\\', '~') or text[1:3] in (':/', ':\\') or '..' in parts or '://' in text
        if not outside and '\0' not in text and len(text) < 4096 and len(max(parts, key=len)) < 256:
            end = os.path.realpath(self.folder / text)
            outside = not f'{end}/'.startswith(f'{self.folder}/')
        if outside or '\0' in text:
            why = f'every file of a data-only config lies below {self.folder}'
            raise self.error(key, f'{short(text)} leads out of the folder of the config', why)

    def error(self, key: str, message: str, why: str) -> ConfigError:
        return _error(self.path, key, message, why)


def _known(value: Any) -> str:
    hint = did_you_mean(value.rpartition('.')[2], SAFE_TYPES) if isinstance(value, str) and value else ''
    return f'types are names of parts of vitdense, without modules, as vitdense/config/safe_types.py lists them{hint}'


def _error(path: Path, key: str, message: str, why: str) -> ConfigError:
    fix = 'correct the value; a config with parts of your own is a Python file, which is code and runs (without --safe)'
    return ConfigError(
        f'{key}: {message}' if key else message, where=f'{path}: {key}' if key else str(path), why=why, fix=fix
    )
