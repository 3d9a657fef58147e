"""Scores of a model and of its exported graph on the same labelled images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from vitdense.checkpoints.model_config import config_from_model
from vitdense.commands.test import test
from vitdense.export.folder import INFO
from vitdense.storage.atomic import read_json, write_json
from vitdense.storage.trust import trusting_checkpoints

TOLERANCE = 1e-3  # of a score in [0, 1]: 0.1 points


class ScoredBoth(NamedTuple):
    """A score of the model and of the graph; None where a metric has no value."""

    name: str
    model: float | None
    graph: float | None

    @property
    def passed(self) -> bool:
        if self.model is None or self.graph is None:
            return self.model is self.graph
        return abs(self.model - self.graph) <= TOLERANCE


def compare_scores(model: str | Path, folder: Path, data: str | Path, *, split: str | None = None) -> list[ScoredBoth]:
    """Test `model` and the graph in `folder` on the labelled images of `data`, and keep the scores in `export.json`.

    Both compute in float32. Raises what `test` raises.
    """
    cfg, weights = config_from_model(model, data, options=('amp=off',), split=split)
    with tempfile.TemporaryDirectory(prefix='vitdense-') as scratch:
        ours = test(cfg, weights, work_dir=f'{scratch}/model')
        with trusting_checkpoints():  # the graph has just been made
            theirs = test(cfg, folder, work_dir=f'{scratch}/graph')
    scores = [ScoredBoth(name, value, theirs.get(name)) for name, value in ours.items()]
    content = read_json(folder / INFO)
    write_json(folder / INFO, {**content, 'scores': [score._asdict() for score in scores]})
    return scores
