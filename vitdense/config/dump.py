"""Write a config as Python text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def dump_config(cfg: Mapping[str, Any], path: str | Path) -> None:
    """Write `cfg` as a Python file that `load_config` reads back to the same config. Nothing is imported there."""
    Path(path).write_text(config_text(cfg), encoding='utf-8')


def config_text(cfg: Mapping[str, Any]) -> str:
    """Return the text that `dump_config` writes."""
    return ''.join(f'{key} = {_source(value, 0)}\n' for key, value in cfg.items())


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
