"""Replay files hold a step as it was, and nothing in them is run."""

from __future__ import annotations

import os

import pytest
import torch

from vitdense.errors import CheckpointError, NumericsError
from vitdense.replay.files import read_replay, record_step, replay
from vitdense.replay.non_finite import non_finite_tensors


@pytest.fixture
def recorded(trainer, tmp_path):
    """The replay file of the second step of a run, whose numbers are finite, the error and the training loop."""
    loop = trainer('run').train_loop
    loop.batches.append((1, next(iter(loop.dataloader))))
    error = NumericsError('it fails', fix='nothing')
    record_step(loop, error)
    return tmp_path / 'run' / 'debug' / 'nan_replay.pt', error, loop


def test_a_step_is_recorded_as_it_was(recorded):
    path, error, loop = recorded
    model, content = loop.runner.network_model, read_replay(path)
    assert str(path) in error.fix and content['non_finite'] == [] and content['error'] == 'it fails'
    assert all(torch.equal(content['state_dict'][name], value) for name, value in model.named_parameters())
    assert content['state_dict']['network.heads.sem.norm.running_mean'].abs().max() == 0  # those before the step
    inputs = loop.seeded_inputs(*loop.batches[0])
    assert torch.equal(content['inputs'].imgs, inputs.imgs)
    assert torch.equal(content['rng']['cpu'], torch.get_rng_state())  # dropout is the same
    content, names = replay(path)
    assert names == []


def test_names_come_in_the_order_of_the_step(recorded):
    loop = recorded[2]
    model, inputs = loop.runner.network_model, loop.seeded_inputs(*loop.batches[0])
    assert non_finite_tensors(model, inputs, scale=1e40)[0].startswith('gradient network.')  # the loss is finite
    nan = inputs._replace(imgs=inputs.imgs * float('nan'))
    names = non_finite_tensors(model, nan)
    assert names[0] == 'input imgs' and names[1].startswith('output network.backbone.model.patch_embed')
    kinds = [name.split()[0] for name in names]
    assert kinds == sorted(kinds, key=['input', 'output', 'loss', 'gradient'].index)


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ['MARKER'],)


def test_no_code_of_a_replay_file_is_run(recorded, tmp_path, monkeypatch):
    path = recorded[0]
    monkeypatch.setenv('MARKER', str(tmp_path / 'marker'))
    content = torch.load(path, weights_only=True)
    torch.save({**content, 'error': Code()}, path)
    with pytest.raises(CheckpointError, match='no replay file'):
        replay(path)
    torch.save({**content, 'config': content['config'].replace('vitdense.heads.linear.LinearHead', 'os.mkdir')}, path)
    with pytest.raises(CheckpointError, match="'os.mkdir'"):
        replay(path)
    torch.save({'step': 1}, path)
    with pytest.raises(CheckpointError, match='no replay file'):
        replay(path)
    assert not (tmp_path / 'marker').exists()
