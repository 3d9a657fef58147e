"""tools/test.py scores a model folder and its exported graph on labelled images, without a config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.test_predictor import CLASSES, saved, tiny_model
from tools import export, test
from vitdense.commands.compare_scores import ScoredBoth

pytest.importorskip('onnxruntime')


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Labelled images of two sizes, a model folder and its graph."""
    root = tmp_path_factory.mktemp('scores')
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for number in range(3 if split == 'test' else 2):
            size = (40, 56) if number % 2 else (48, 32)
            for kind, high, more in (('images', 255, (3,)), ('masks', 3, ())):
                path = root / 'data' / kind / split / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, high, (*size, *more), dtype=np.uint8)).save(path)
    (root / 'data/classes.txt').write_text('\n'.join(CLASSES))
    model = saved(root / 'model', tiny_model())
    assert export.main([str(model), '--out', str(root / 'graph'), '--dynamic', 'batch,size']) == 0
    return root / 'data', model, root / 'graph'


def scores(data: Path, model: Path, out: Path, *options: str) -> dict[str, float]:
    test.main([str(model), '--data', str(data), '--work-dir', str(out), '--device', 'cpu', '--amp', 'off', *options])
    return json.loads((out / 'metrics.json').read_text())


def test_a_graph_has_the_scores_of_its_model(folders, tmp_path):
    data, model, graph = folders
    of_model = scores(data, model, tmp_path / 'a', '--workers', '0')
    of_graph = scores(data, graph, tmp_path / 'b', '--workers', '0')
    assert of_model['sem/mIoU'] > 0 and of_graph == pytest.approx(of_model, abs=1e-3)
    other = scores(data, model, tmp_path / 'c', '--workers', '0', '--split', 'val')
    assert other['sem/mIoU'] != of_model['sem/mIoU']
    code = export.main(
        [str(model), '--out', str(graph), '--dynamic', 'batch,size', '--data', str(data), '--split', 'test']
    )
    kept = {row['name']: row for row in json.loads((graph / 'export.json').read_text())['scores']}
    assert code == 0 and kept['sem/mIoU']['model'] == pytest.approx(of_model['sem/mIoU'], abs=1e-6)


def test_scores_that_differ_are_said_to_differ():
    assert ScoredBoth('a', 0.5, 0.5009).passed and not ScoredBoth('a', 0.5, 0.502).passed
    assert ScoredBoth('a', None, None).passed and not ScoredBoth('a', None, 0.5).passed
