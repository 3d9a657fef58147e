"""Scores of the classes that a model had before its training, before and after: `train.py --old-data FOLDER`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mmengine.dist import is_main_process

from vitdense.config.own_data import use_folder
from vitdense.config.run_config import RunConfig
from vitdense.errors import ConfigError
from vitdense.protocols import Tabulated
from vitdense.reporting.console import print_table
from vitdense.reporting.progress import score_text
from vitdense.storage.atomic import write_json
from vitdense.train.tester import make_tester

REPORT = 'old_classes.json'


def old_class_config(cfg: RunConfig, data: str | Path) -> RunConfig:
    """Return the config of a test on the validation split of the folder `data`. Raises ConfigError, DataError."""
    if not cfg.get('keep_classes'):
        raise ConfigError(
            'old classes are tested only where they are kept',
            where=f'--old-data {data}',
            why='without --keep-classes the model has the classes of the data alone',
            fix='add --keep-classes, or leave --old-data out',
        )
    content = copy.deepcopy(dict(cfg))
    content['train_dataloader'] = None
    use_folder(content, data, file=str(cfg.filename), split='val')
    return cfg.replaced(**{**content, 'keep_classes': None})


def report_old_classes(
    cfg: RunConfig, models: Mapping[str, str | Path], kept: Sequence[str], folder: Path, *, device: str | None = None
) -> dict[str, dict[str, float | None]]:
    """Test `models` (paths by name) by the config, print a table of the mean scores of groups of classes, and return
    them: `kept`, the old classes that the new training data does not label, and old classes that it labels.

    The score is AP or IoU: that of the table of the config's first metric with one. Those of all classes are written to
    `old_classes.json`.
    """
    scores = {}
    for name, path in models.items():
        tester = make_tester(cfg, folder / 'old_classes', path, device=device)
        tester.test()
        scores[name] = _scores_of(tester.test_evaluator.metrics)
    groups: dict[str, list[str]] = {'kept': [], 'labelled anew': []}
    for name in next(iter(scores.values())):
        groups['kept' if name in kept else 'labelled anew'].append(name)
    groups = {group: names for group, names in groups.items() if names}
    means = {group: {model: _mean(each, names) for model, each in scores.items()} for group, names in groups.items()}
    if is_main_process():
        write_json(folder / REPORT, {'means': means, 'classes': scores})
        rows = [(f'{group} ({len(groups[group])})', *map(score_text, each.values())) for group, each in means.items()]
        print_table(f'old classes, on {cfg.data_root}', ('classes', *models), rows)
    return means


def _scores_of(metrics: Sequence[Any]) -> dict[str, float | None]:
    """Return the score of each class that the data labels: the first one of each row of the table."""
    metric = next(metric for metric in metrics if isinstance(metric, Tabulated))
    return {row[0]: row[1] for row in metric.table() if row[-1]}


def _mean(scores: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    known = [scores[name] for name in names if scores.get(name) is not None]
    return fmean(known) if known else None
