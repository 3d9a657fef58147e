"""The probe as a user runs it, against timm and numpy on real images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

from tools import probe
from vitdense.errors import ConfigError

CONFIG = 'configs/classification/linear_vit_ti_imagenette.py'
EACH = 6  # images of each class


@pytest.fixture
def few(shared, tmp_path, monkeypatch):
    """A folder with the first images of each class, and the options that a probe of them takes."""
    monkeypatch.setenv('VITDENSE_CACHE', str(tmp_path / 'cache'))
    for part, number in (('train', EACH), ('val', 2)):
        for folder in sorted((shared / 'imagenette160' / part).iterdir()):
            (tmp_path / 'data' / part / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:number]:
                shutil.copyfile(file, tmp_path / 'data' / part / folder.name / file.name)
    weights = shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors'
    return weights, [f'data_root={tmp_path / "data"}', f'model.network.backbone.pretrained={weights}']


def reference(weights, folder):
    """Return class tokens (N, 192) float64 and labels by timm alone."""
    model = timm.create_model('vit_tiny_patch16_224', num_classes=0).eval()
    state = {name: value.float() for name, value in load_file(weights).items() if not name.startswith('head')}
    model.load_state_dict(state)
    look = create_transform(224, interpolation='bicubic', crop_pct=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    tokens, labels = [], []
    for label, location in enumerate(sorted(folder.iterdir())):
        for file in sorted(location.iterdir()):
            with torch.inference_mode():
                tokens.append(model.forward_features(look(Image.open(file).convert('RGB'))[None])[0, 0])
            labels.append(label)
    return torch.stack(tokens).double().numpy(), np.array(labels)


def test_neighbours_and_linear_head_are_those_of_an_independent_computation(few, tmp_path):
    weights, options = few
    out = tmp_path / 'out'
    probe.main([CONFIG, '--work-dir', str(out), '--device', 'cpu', '--workers', '0', '--cfg-options', *options])
    rows = json.loads((out / 'probe.json').read_text())['rows']
    (train, labels), (test, targets) = (reference(weights, tmp_path / 'data' / part) for part in ('train', 'val'))
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (train, test)]
    cosines = unit[1] @ unit[0].T
    for row in rows[:4]:
        near = np.argsort(-cosines, axis=1)[:, : row['k']]
        votes = np.zeros((len(test), 10))
        for location, columns in enumerate(near):
            np.add.at(votes[location], labels[columns], np.exp(cosines[location, columns] / 0.07))
        assert row['cls/top1'] == pytest.approx((votes.argmax(1) == targets).mean())
    assert rows[1]['k'] == 20 and rows[1]['cls/top1'] >= 0.9
    assert [row['head'] for row in rows] == ['knn'] * 4 + ['linear']
    right = linear_outputs(train, labels, test, rows[4]['lr']) == targets
    assert rows[4]['cls/top1'] == pytest.approx(right.mean()) and right.mean() >= 0.9


def linear_outputs(train, labels, test, rate, steps=1000):
    """Softmax regression by full descent with momentum, which a tool for it would do as well."""
    mean, deviation = train.mean(0), train.std(0)
    x, y = (np.c_[(rows - mean) / deviation, np.ones(len(rows))] for rows in (train, test))
    weights = speed = np.zeros((x.shape[1], 10))
    for step in range(steps):
        shares = np.exp(x @ weights)
        shares /= shares.sum(1, keepdims=True)
        speed = 0.9 * speed + x.T @ (shares - np.eye(10)[labels]) / len(x)
        weights = weights - rate * (1 + np.cos(np.pi * step / steps)) / 2 * speed
    return (y @ weights).argmax(1)


@pytest.mark.slow
def test_imagenette_by_twenty_neighbours_and_a_linear_head(shared, tmp_path, monkeypatch):
    monkeypatch.setenv('VITDENSE_CACHE', str(tmp_path / 'cache'))
    weights, data = shared / 'weights' / 'vit_tiny_patch16_224_fp16.safetensors', shared / 'imagenette160'
    options = [f'data_root={data}', f'model.network.backbone.pretrained={weights}']
    probe.main([CONFIG, '--work-dir', str(tmp_path), '--device', 'cpu', '--cfg-options', *options])
    rows = json.loads((tmp_path / 'probe.json').read_text())['rows']
    assert rows[1]['cls/top1'] > 0.95 and rows[4]['cls/top1'] >= 0.96
    (train, labels), (test, targets) = (reference(weights, data / part) for part in ('train', 'val'))
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (train, test)]
    cosines = unit[1] @ unit[0].T
    near = np.argsort(-cosines, axis=1)[:, :20]
    votes = np.stack(
        [np.bincount(labels[row], np.exp(c[row] / 0.07), 10) for row, c in zip(near, cosines, strict=True)]
    )
    assert rows[1]['cls/top1'] == pytest.approx((votes.argmax(1) == targets).mean())


def test_a_misspelt_config_is_named():
    with pytest.raises(ConfigError, match='linear_vit_ti_imagenette'):
        probe.main(['configs/classification/linear_vit_ti_imagenete.py'])
