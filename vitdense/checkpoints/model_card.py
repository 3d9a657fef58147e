"""The model card of a model folder: README.md with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdense.config.classes import field_of
from vitdense.storage.atomic import sha256_of, write_text

CARD, SUMS = 'README.md', 'SHA256SUMS'
GENERATED = '<!-- written by vitdense; without this line the card is yours and stays as it is -->'
MAX_ROWS = 100  # classes that a table lists
TASKS = {'semantic': 'image-segmentation', 'labels': 'object-detection', 'image_label': 'image-classification'}
LICENCES = ('apache-2.0', 'mit', 'cc-by-nc-4.0', 'cc-by-4.0', 'bsd-3-clause')  # ids of the Hub that licences begin with
UNKNOWN = 'other'


def write_card(folder: Path, info: Mapping[str, Any], *, repo: str = '') -> None:
    """Write the card of the folder whose `model.json` is `info`, and the checksums of its files. Raises OSError.

    A card from which the line `GENERATED` was removed is kept. `repo` is the repository on the Hub.
    """
    path = folder / CARD
    if not path.is_file() or GENERATED in path.read_text(encoding='utf-8'):
        write_text(path, card_text(info, repo=repo))
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != SUMS and file.suffix != '.tmp')
    write_text(folder / SUMS, ''.join(f'{sha256_of(file)}  {file.name}\n' for file in files))


def name_of(folder: Path) -> str:
    """Return how a model folder is called; that of a run, `RUN/model`, by the name of the run."""
    return folder.absolute().parent.name if folder.name == 'model' else folder.name


def card_text(info: Mapping[str, Any], *, repo: str = '') -> str:
    """Return the card of a model: what it predicts, how it is loaded, its scores, thresholds, classes and licence."""
    heads = _fields_of_heads(info)
    vit = _vit_of(info['recipe'])
    kinds = ', '.join(f'{head} ({TASKS.get(field, field).replace("-", " ")})' for head, field in heads.items())
    parts = [
        f'---\n{_front_matter(info, heads)}\n---\n{GENERATED}\n',
        f'# {info.get("name") or "A vitdense model"}\n',
        f'Heads: {kinds or "none"}.' + (f' Backbone: `{vit}`, a plain Vision Transformer.' if vit else ''),
        '\n## Use\n\n```python\nimport vitdense  # pip install vitdense\n\n'
        f"predictor = vitdense.load('hf:{repo or 'OWNER/NAME'}')  # or the path of this folder\n"
        "predictor('photo.jpg').save('overlay.jpg')\n```\n\n"
        'The folder holds data only: loading it runs no code of it. `sha256sum -c SHA256SUMS` checks the files.',
        *_scores(info),
        *_thresholds(info, heads),
        *_classes(info, heads),
        f'\n## Licence\n\n{info.get("licence", "Not stated.")}',
    ]
    return '\n'.join([*parts, *([info['notes']] if info.get('notes') else [])]) + '\n'


def _front_matter(info: Mapping[str, Any], heads: Mapping[str, str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    kinds = [TASKS[field] for field in heads.values() if field in TASKS]
    data, licence = list(info.get('data') or ()), _licence_id(info)
    scores = [
        EvalResult(
            task_type=TASKS.get(heads.get(head, ''), 'image-segmentation'),
            dataset_type=data[0] if data else 'own',
            dataset_name=data[0] if data else 'validation data of the training',
            metric_type=metric,
            metric_value=value,
        )
        for head, metric, value in _main_scores(info)
    ]
    fields = ModelCardData(
        library_name='vitdense',
        pipeline_tag=kinds[0] if kinds else None,
        license=licence,
        license_name='see-below' if licence == UNKNOWN else None,
        license_link=CARD if licence == UNKNOWN else None,
        datasets=[name for name in data if '/' in name] or None,  # others are no names of the Hub
        metrics=sorted({metric for _, metric, _ in _main_scores(info)}) or None,
        tags=['vitdense', 'vision-transformer', *sorted(set(kinds[1:]) - set(kinds[:1]))],
        model_name=str(info.get('name') or 'vitdense model') if scores else None,
        eval_results=scores or None,
    )
    return fields.to_yaml().strip()


def _licence_id(info: Mapping[str, Any]) -> str:
    words = str(info.get('licence_id') or info.get('licence', '')).lower()
    return next(
        (name for name in LICENCES if re.match(re.escape(name) + r'\b', words)), info.get('licence_id', UNKNOWN)
    )


def _fields_of_heads(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the field of the classes of every head, as its task reads it."""
    tasks = info['recipe'].get('tasks') or {}
    return {name: field_of(task) for name, task in tasks.items() if isinstance(task, Mapping)}


def _vit_of(recipe: Mapping[str, Any]) -> str:
    network = recipe.get('network')
    backbone = (network.get('backbone') or network.get('vit')) if isinstance(network, Mapping) else None
    return str(backbone.get('name', '')) if isinstance(backbone, Mapping) else ''


def _main_scores(info: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield (head, metric, value) of the scores of whole heads, without those of single classes."""
    for key, value in (info.get('metrics') or {}).items():
        head, _, metric = key.partition('/')
        if isinstance(value, float) and math.isfinite(value) and metric and '/' not in metric:
            yield head, metric, round(value, 5)


def _scores(info: Mapping[str, Any]) -> list[str]:
    rows = [f'| {head} | {metric} | {value:.4g} |' for head, metric, value in _main_scores(info)]
    step = f', after {info["step"]} steps' if 'step' in info else ''
    data = f' on {", ".join(info["data"])}' if info.get('data') else ''
    title = f'\n## Evaluation\n\nValidation of the training{data}{step}.\n\n| head | metric | value |\n|---|---|---|'
    return [title, *rows] if rows else []


def _thresholds(info: Mapping[str, Any], heads: Mapping[str, str]) -> list[str]:
    lines = []
    for head, points in (info.get('operating_points') or {}).items():
        names = (info.get('classes') or {}).get(heads.get(head, ''), ())
        columns = zip(names, *(points.get(key, ()) for key in ('threshold', 'precision', 'recall')), strict=False)
        rows = [
            f'| {name} | ' + ' | '.join('-' if x is None else f'{x:.3f}' for x in row) + ' |' for name, *row in columns
        ]
        if rows:
            title = (
                f'\n## Score thresholds: {head}\n\nA prediction counts from the score of best F1 in validation on.\n'
            )
            head_row = ['| class | score | precision | recall |', '|---|---|---|---|']
            lines += [title, *head_row, *rows[:MAX_ROWS]]
    return lines


def _classes(info: Mapping[str, Any], heads: Mapping[str, str]) -> list[str]:
    lines = []
    for head, field in heads.items():
        names: Sequence[str] = (info.get('classes') or {}).get(field, ())
        more = f', ... ({len(names)} in all)' if len(names) > MAX_ROWS else ''
        if names:
            lines.append(f'\n## Classes: {head} ({len(names)})\n\n{", ".join(names[:MAX_ROWS])}{more}')
    return lines
