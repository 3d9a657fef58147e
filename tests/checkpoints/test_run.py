"""Checkpoints are whole or absent, run no code, and are found again."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import namedtuple

import pytest
import torch

from vitdense.checkpoints import run as checkpoints
from vitdense.checkpoints.run import (
    delete_older,
    delete_temporary_files,
    find_checkpoint,
    non_finite,
    read_checkpoint,
    write_checkpoint,
)
from vitdense.errors import CheckpointError, DiskError, NumericsError


def content(step: int = 1) -> dict:
    return {'state_dict': {'weight': torch.full((100,), float(step))}, 'step': step}


def write_steps(folder, *steps: int) -> None:
    for step in steps:
        write_checkpoint(folder / f'step_{step:06d}.pth', content(step))


def test_what_a_run_writes_needs_no_code_to_be_read(trainer, tmp_path):
    trainer('run', ('schedule.max_iters=2',)).train()
    for name in ('step_000002.pth', 'best.pth'):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / 'run' / name) == []
    kept = read_checkpoint(tmp_path / 'run' / 'step_000002.pth')
    assert kept['step'] == 2 and kept['classes']['semantic'][0] == 'background'
    assert not {'optimizer', 'training_state_dict'} & read_checkpoint(tmp_path / 'run' / 'best.pth').keys()
    model = torch.load(tmp_path / 'run' / 'best.pth', weights_only=True)
    assert set(model['state_dict']) == set(kept['state_dict'])


def test_newest_whole_checkpoint_is_found(tmp_path, caplog):
    write_steps(tmp_path, 1, 2, 3)
    (tmp_path / 'last_checkpoint').write_text('step_000003.pth\n')
    assert find_checkpoint(tmp_path).name == 'step_000003.pth'
    newest = tmp_path / 'step_000003.pth'
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one flipped bit, which torch.load does not notice
    newest.write_bytes(damaged)
    import logging

    logging.getLogger('vitdense').propagate = True
    assert find_checkpoint(tmp_path).name == 'step_000002.pth'
    assert 'checksum mismatch, using step_000002.pth' in caplog.text
    (tmp_path / 'step_000002.pth').write_bytes(b'')
    (tmp_path / 'step_000001.pth.sha256').unlink()  # copied without its checksum: read instead
    assert find_checkpoint(tmp_path).name == 'step_000001.pth'
    assert find_checkpoint(tmp_path / 'nothing') is None


@pytest.mark.parametrize('moment', ['written', 'renamed'])
def test_a_kill_while_saving_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / 'best.pth'
    write_checkpoint(path, content(1))
    replace = os.replace

    def killed(source, target):
        if moment == 'renamed':
            replace(source, target)
        if str(target).endswith('.pth'):
            raise KeyboardInterrupt
        if moment == 'written':
            replace(source, target)

    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, content(2))
    monkeypatch.undo()
    assert read_checkpoint(path)['step'] == (1 if moment == 'written' else 2)
    delete_temporary_files(tmp_path)
    assert not list(tmp_path.glob('*.tmp.*'))


def test_old_files_go_after_the_new_one_is_there(tmp_path):
    write_steps(tmp_path, 1, 2, 3, 10)
    delete_older(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'step_000003.pth',
        'step_000003.pth.sha256',
        'step_000010.pth',
        'step_000010.pth.sha256',
    ]


def test_a_full_disk_keeps_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / 'step_000001.pth'
    write_checkpoint(path, content(1))
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage(1, 1, 300))
    with pytest.raises(DiskError, match=r'not written \(free 300 B\)'):
        write_checkpoint(path, content(2))
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage(1, 1, 10**9))
    monkeypatch.setattr(os, 'fsync', lambda handle: (_ for _ in ()).throw(OSError(28, 'No space left')))
    with pytest.raises(DiskError, match='not written'):
        write_checkpoint(path, content(2))
    monkeypatch.undo()
    assert read_checkpoint(path)['step'] == 1
    assert not list(tmp_path.glob('*.tmp.*'))


def test_training_survives_a_full_disk_and_raises_at_the_end(trainer, tmp_path, monkeypatch):
    runner = trainer('run')
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda folder: usage(1, 1, 10))
    with pytest.raises(DiskError):
        runner.train()
    assert runner.iter == 8
    assert not list((tmp_path / 'run').glob('*.pth'))


class Evil:
    def __reduce__(self):
        return os.system, ('touch marker',)


def test_code_in_a_file_is_named_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {}, 'x': Evil()}, tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / 'evil.pth')
    assert 'system' in caught.value.why
    (tmp_path / 'old.pth').write_bytes(pickle.dumps({'x': Evil()}))
    for broken in (b'', b'<html>', (tmp_path / 'old.pth').read_bytes()):
        (tmp_path / 'broken.pth').write_bytes(broken)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / 'broken.pth')
    assert not (tmp_path / 'marker').exists()


def test_weights_that_are_not_finite_are_never_saved(trainer, tmp_path):
    assert non_finite({'a': torch.ones(2), 'b': torch.tensor([1.0, float('nan')]), 'n': torch.tensor(3)}) == ['b']
    runner = trainer('run', ('schedule.val_interval=8', 'ema=None'))

    class Break:
        priority = 'NORMAL'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if batch_idx == 5:
                with torch.no_grad():
                    next(runner.model.network.heads.parameters()).fill_(float('inf'))

    runner._hooks.append(Break())
    with pytest.raises(NumericsError):
        runner.train()
    assert read_checkpoint(find_checkpoint(tmp_path / 'run'))['step'] == 4
