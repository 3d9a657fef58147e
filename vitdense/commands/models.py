"""Published models for the tools: their list, and the option that names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitdense.convert.model_names import model_path, status
from vitdense.convert.published_models import PublishedModel, find_model, published_models
from vitdense.reporting.console import console, print_table, start_logging
from vitdense.storage.atomic import format_bytes


def trained_model(name_or_path: str | Path | None, *, accept_licence: bool = False) -> str | None:
    """Return the path that an option of a tool names (see `model_path`), and show what is fetched and converted."""
    if name_or_path is None:
        return None
    if find_model(str(name_or_path)) is not None and not Path(name_or_path).exists():
        start_logging(None, keep=True)
    return str(model_path(name_or_path, accept_licence=accept_licence))


def description_of(model: PublishedModel) -> dict[str, Any]:
    """Return what the table says of a model, and what is here, as plain data."""
    published = model.published
    return {
        'name': model.name,
        'task': model.task,
        'data': model.data,
        'classes': model.classes,
        'parameters': model.parameters,
        'result': model.result,
        'source': model.source,
        'licence': published.licence,
        'free': published.free,
        'size': model.size,
        'status': status(model),
        'config': model.config,
        'files': [file.address for file in model.all_files],
    }


def list_models(word: str = '') -> list[dict[str, Any]]:
    """Return the descriptions of all published models whose name contains `word`."""
    return [description_of(model) for model in published_models().values() if word.lower() in model.name]


def show_models(rows: list[dict[str, Any]]) -> None:
    """Print a table of descriptions."""
    cells = [
        (
            row['name'],
            row['task'],
            f'{row["classes"]} ({row["data"]})',
            f'{row["parameters"] / 1e6:.1f} M',
            row['result'],
            _licence(row),
            _size(row),
            row['status'] or '-',
        )
        for row in rows
    ]
    title = f'{len(rows)} published models'
    print_table(title, ('name', 'task', 'classes', 'parameters', 'published', 'licence', 'size', 'here'), cells)
    console().print('licences marked * have conditions: --accept-licence; sources: vitdense models --json')


def _licence(row: dict[str, Any]) -> str:
    short = row['licence'].partition(' (')[0].replace(', and the', ' +').replace(' of Meta for the backbone', '')
    return short if row['free'] else f'{short} *'


def _size(row: dict[str, Any]) -> str:
    """Return the size that the publisher states, else that of the parameters in float32."""
    return format_bytes(row['size']) if row['size'] else f'about {format_bytes(4 * row["parameters"])}'
