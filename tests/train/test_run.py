"""What a run leaves behind, and what ends it early."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from PIL import Image
from torch import nn

from vitdense.checkpoints.run import read_checkpoint
from vitdense.distributed.processes import leave_processes
from vitdense.errors import ConfigError
from vitdense.reporting import run_images as artifacts
from vitdense.reporting import trackers
from vitdense.reporting.history import read_rows
from vitdense.reporting.progress import fold
from vitdense.reporting.run_images import share
from vitdense.storage.atomic import finite


def test_files_of_a_run(trainer, tmp_path):
    runner = trainer('run', ('sample_images=2', "loggers=('tensorboard',)"))
    folder = tmp_path / 'run'

    class Look:
        priority = 'VERY_LOW'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            assert (folder / 'labels.jpg').exists()  # before the first step

    runner._hooks.append(Look())
    runner.train()
    for name in ('labels.jpg', 'predictions.jpg', 'curves.png', 'confusion.png'):
        assert min(Image.open(folder / name).size) > 50
    written = json.loads((folder / 'metrics.json').read_text())
    assert {'sem/mIoU', 'sem/aAcc', 'sem/mAcc', 'step', 'best', 'skipped_steps', 'bad_images'} <= written.keys()
    assert 0 <= written['best']['sem/mIoU'] <= 1 and written['step'] == 8
    rows = read_rows(folder / 'metrics.csv')
    assert [row['step'] for row in rows if 'loss' in row] == list(range(1, 9))
    assert [row['step'] for row in rows if 'sem/mIoU' in row] == [4, 8]
    assert (folder / 'log.txt').stat().st_size and (folder / 'config.py').stat().st_size
    assert read_checkpoint(folder / 'best.pth')['best'] == written['best']
    assert max(row['sem/mIoU'] for row in rows if 'sem/mIoU' in row) == written['best']['sem/mIoU']


def test_long_tables_stand_side_by_side():
    rows = [[f'class {row}', '1.0'] for row in range(100)]
    header, folded = fold(['class', 'IoU'], rows, width=200)
    assert header == ['class', 'IoU'] * 3 and len(folded) == 34
    assert folded[0] == ['class 0', '1.0', 'class 34', '1.0', 'class 68', '1.0'] and folded[-1][-2:] == ['', '']
    assert fold(['class', 'IoU'], rows, width=20) == (['class', 'IoU'], rows)


def test_numbers_that_are_not_become_null():
    assert finite({'a': float('nan'), 'b': torch.tensor(2.0), 'c': 3, 'd': float('inf')}) == {
        'a': None,
        'b': 2.0,
        'c': 3,
        'd': None,
    }


def test_images_come_from_the_whole_validation_set():
    assert [share(8, row, 4) for row in range(4)] == [2, 2, 2, 2]
    spread = [share(8, row, 26) for row in range(26)]
    assert sum(spread) == 8 and set(spread) == {0, 1} and sum(spread[:13]) == 4
    assert [share(8, row, 3) for row in range(3)] == [2, 3, 3]


def test_neither_images_nor_trackers_stop_a_run(trainer, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError('no ink')

    class BrokenTracker:
        def __init__(self, *args):
            pass

        def log(self, numbers, step):
            raise OSError('no network')

        close = broken

    monkeypatch.setattr(artifacts.visualize, 'contact_sheet', broken)
    monkeypatch.setattr(artifacts.visualize, 'plot_curves', broken)
    monkeypatch.setitem(trackers.TRACKERS, 'wandb', BrokenTracker)
    monkeypatch.setitem(trackers.TRACKERS, 'mlflow', broken)
    runner = trainer('run', ('sample_images=1', "loggers=('wandb', 'mlflow')"))
    lines = []
    ear = logging.Handler()
    ear.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger('vitdense').addHandler(ear)
    runner.train()
    assert runner.iter == 8
    assert sum('curves.png could not be drawn' in line for line in lines) == 1
    assert sum('logging to wandb stopped' in line for line in lines) == 1
    assert sum('logging to mlflow stopped' in line for line in lines) == 1


def test_unknown_names_are_refused_at_the_start(trainer):
    for option, message in (
        ('checkpoint.best=sem/mIuO', None),
        ('checkpoint.best=seg/mIoU', "= 'seg/mIoU'"),
        ("early_stopping={'monitor': 'sme/mIoU'}", "= 'sme/mIoU'"),
        ("loggers=('tensorbord',)", "did you mean 'tensorboard'"),
        ('optim_wrapper.clip_grad.max_norm=-1', 'clip_grad'),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer('run', (option,)).train()


def test_early_stopping_ends_after_its_patience(trainer, tmp_path):
    options = (
        'schedule.val_interval=1',
        'schedule.max_iters=50',
        "early_stopping={'monitor': 'sem/mIoU', 'patience': 2, 'min_delta': 1.0}",
    )
    runner = trainer('run', options)
    runner.train()
    assert runner.iter == 3  # the first validation is the best so far, then two that do not improve by 1.0
    assert read_checkpoint(tmp_path / 'run' / 'step_000003.pth')['early_stopping']['waited'] == 2


def test_the_average_is_validated_and_saved(trainer, tmp_path):
    runner = trainer('run', ('schedule.max_iters=3', 'schedule.val_interval=3'))
    weights = []

    class Watch:
        priority = 'NORMAL'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            weights.append(runner.model.network.heads.sem.state_dict())
            weights[-1] = {name: value.clone() for name, value in weights[-1].items()}

        def before_val_iter(self, runner, batch_idx, data_batch=None):
            self.validated = {n: v.clone() for n, v in runner.model.network.heads.sem.state_dict().items()}

    watch = Watch()
    runner._hooks.append(watch)
    start = {name: value.clone() for name, value in runner.model.network.heads.sem.state_dict().items()}
    runner.train()
    name = next(name for name, value in runner.model.network.heads.sem.named_parameters() if value.ndim > 1)
    average = start[name]
    for step, recorded in enumerate(weights):
        average = average.lerp(recorded[name], max(0.1, 9 / (10 + step)))
    saved = read_checkpoint(tmp_path / 'run' / 'step_000003.pth')
    key = f'network.heads.sem.{name}'
    assert torch.allclose(saved['state_dict'][key], average, atol=1e-6)
    assert torch.equal(saved['training_state_dict'][key], weights[-1][name])
    assert torch.equal(watch.validated[name], saved['state_dict'][key])
    assert torch.equal(runner.model.network.heads.sem.state_dict()[name], weights[-1][name])  # put back


def test_epochs_and_a_run_without_validation(trainer, tmp_path):
    runner = trainer(
        'run',
        ('schedule.max_iters=None', 'schedule.max_epochs=2', 'schedule.val_interval=1', 'checkpoint.interval=1'),
    )
    assert (runner.max_iters, runner.val_interval, runner.train_loop.saving.interval) == (12, 6, 6)  # 11 images by 2
    runner = trainer('none', ('val_dataloader=None', 'schedule.max_iters=2'))
    runner.train()
    assert (tmp_path / 'none' / 'step_000002.pth').exists() and not (tmp_path / 'none' / 'best.pth').exists()


def _part_from_the_others(rank: int) -> tuple[list[str], list[str], bool]:
    """Return the threads of a trained model's connection before and after, and whether the model was unwrapped."""
    wrapped = MMDistributedDataParallel(nn.Linear(2, 2))
    wrapped(torch.ones(1, 2)).sum().backward()
    runner = SimpleNamespace(model=wrapped, network_model=wrapped.module)
    del wrapped
    before = _gloo_threads()
    leave_processes(runner)
    return before, _gloo_threads(), isinstance(runner.model, nn.Linear)


def _gloo_threads() -> list[str]:
    names = [path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')]
    return [name for name in names if 'gloo' in name]


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='the names of threads are read from /proc')
def test_the_end_of_a_run_ends_the_threads_between_processes(run_ranks):
    for before, after, unwrapped in run_ranks(_part_from_the_others):
        assert before and after == [] and unwrapped


def test_a_tracker_that_is_not_installed_says_how_to_install_it(caplog, tmp_path, monkeypatch):
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'", name='tensorboard')

    monkeypatch.setitem(trackers.TRACKERS, 'tensorboard', missing)
    trackers.Trackers(['tensorboard'], tmp_path, {}).begin('run')
    assert "pip install 'vitdense[tensorboard]'" in caplog.text
