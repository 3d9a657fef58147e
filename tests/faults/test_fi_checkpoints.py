"""FI-18, FI-22 and FI-26: checkpoints of other runs, other programs and unknown origin."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from tests.train.test_resume import equal
from vitdense.checkpoints.resumable import read_resumable
from vitdense.checkpoints.run import find_checkpoint, read_checkpoint
from vitdense.commands.parser import Parser
from vitdense.errors import CheckpointError
from vitdense.storage.weights import read_weights

pytestmark = pytest.mark.faults


class MakeFolder:
    """Unpickled, it makes the folder MARKER."""

    def __reduce__(self):
        return os.mkdir, (os.environ['MARKER'],)


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.setenv('MARKER', str(tmp_path / 'marker'))
    yield tmp_path / 'marker'
    parse([])


def parse(words):
    parser = Parser(prog='tool.py')
    parser.add_shared('--trust-checkpoint')
    return parser.parse_args(words)


def test_fi_22_a_checkpoint_with_code_is_read_only_where_the_user_says_so(tmp_path, marker, caplog):
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {'head.weight': torch.ones(2)}, 'meta': MakeFolder()}, path)
    for read in (read_weights, read_checkpoint, read_resumable):
        with pytest.raises(CheckpointError, match='cannot be read|would run code') as caught:
            read(path)
        assert 'posix.mkdir' in caught.value.why and caught.value.exit_code == 3 and not marker.exists()
    logging.getLogger('vitdense').propagate = True
    parse(['--trust-checkpoint'])
    assert read_weights(path)['head.weight'].tolist() == [1, 1]
    assert marker.exists() and 'posix.mkdir' in caplog.text  # the names are shown before it runs
    parse([])
    with pytest.raises(CheckpointError, match='would run code') as caught:
        read_weights(path)
    assert '--trust-checkpoint' in caught.value.fix


def of_mmengine(runner, path, **more):
    """Write the state of a runner as mmengine 0.10.7 and mmdet do."""
    wrapper = runner.optim_wrapper
    meta = dict(epoch=1, iter=4, seed=np.int64(0), cfg='model = 1', dataset_meta=dict(classes=('a',)), time='now')
    hub = {'log_scalars': {'train/loss': HistoryBuffer([1.0, np.float64(2.0)], [1, 1])}, 'resumed_keys': {}}
    content = dict(meta=meta, state_dict=runner.model.state_dict(), message_hub=hub, param_schedulers=[])
    torch.save({**content, 'optimizer': wrapper.optimizer.state_dict(), **more}, path)


def test_fi_22_a_run_goes_on_from_a_checkpoint_of_mmengine(trainer, tmp_path, caplog):
    logging.getLogger('vitdense').propagate = True
    options = ('ema=None', 'schedule.val_interval=8')
    first = trainer('first', (*options, 'schedule.max_iters=4', 'schedule.decay=constant'))
    first.train()
    path = tmp_path / 'mm.pth'
    of_mmengine(first, path)
    with pytest.raises(Exception, match='HistoryBuffer|_reconstruct|weights_only'):
        torch.load(path, weights_only=True)  # as mmengine writes it, it needs classes to be read
    content = read_resumable(path)
    assert equal(content['state_dict'], dict(first.model.state_dict())) and content['step'] == 4
    options = (*options, 'schedule.decay=constant')
    for name, checkpoint in (('ours', read_checkpoint(find_checkpoint(tmp_path / 'first'))), ('theirs', content)):
        trainer(name, options, checkpoint=checkpoint).train()
    ours, theirs = (read_checkpoint(tmp_path / name / 'step_000008.pth') for name in ('ours', 'theirs'))
    for key in ('state_dict', 'optimizer', 'step', 'samples_seen'):
        assert equal(ours[key], theirs[key]), key
    assert 'moments of the optimizer begin at zero' not in caplog.text

    content['optimizer']['param_groups'] = content['optimizer']['param_groups'][:1]  # the groups of mmengine
    runner = trainer('fewer', options, checkpoint=content)
    assert 'moments of the optimizer begin at zero' in caplog.text and not runner.optim_wrapper.optimizer.state
    assert runner.train_loop.iter == 0
    runner.load_or_resume()
    assert runner.train_loop.iter == 4


def test_fi_22_averaged_weights_of_mmengine_are_not_taken_for_trained_ones(trainer, tmp_path):
    runner = trainer('run', ('schedule.max_iters=4',))
    trained = {f'module.{name}': value + 1 for name, value in runner.model.state_dict().items()}
    of_mmengine(runner, tmp_path / 'mm.pth', ema_state_dict=trained | {'steps': torch.tensor(3)})
    again = trainer('again', ('schedule.max_iters=5',), checkpoint=read_resumable(tmp_path / 'mm.pth'))
    again.load_or_resume()
    for name, value in runner.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), value + 1), name
    average = dict(zip(again.train_loop.ema.names, again.train_loop.ema.average, strict=True))
    assert all(torch.equal(average[name], runner.model.state_dict()[name]) for name in average)
