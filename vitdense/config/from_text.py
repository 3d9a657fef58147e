"""Configs stored in checkpoints as text, read as data without running them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from vitdense.config.overrides import parse_value


def read_config_text(text: str) -> dict[str, Any]:
    """Return the sections of a config as `config_text` writes it: literals and dict(...). Nothing is run."""
    sections = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            sections[statement.targets[0].id] = parse_value(ast.unparse(statement.value))
    return sections


def config_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of the config of a checkpoint; none where it cannot be read."""
    try:
        return read_config_text(checkpoint['config'])
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return {}


def model_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model recipe in the config of a checkpoint; an empty one where none can be read."""
    model = config_in(checkpoint).get('model')
    return model if isinstance(model, dict) else {}
