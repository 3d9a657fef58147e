"""A config states the total batch: processes share it, train as one would, and what cannot be shared is an error."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.conftest import CONFIG
from tests.distributed.log_lines import LogLines
from vitdense.checkpoints.run import read_checkpoint
from vitdense.commands.memory import Proposal, does_not_fit
from vitdense.config.load import load_config
from vitdense.distributed.batch_size import Batches, compare_batches, describe_rate, share_batches
from vitdense.errors import ConfigError
from vitdense.train.build import make_trainer
from vitdense.train.start import FromCheckpoint

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ('optim_wrapper.optimizer.type=torch.optim.SGD', 'optim_wrapper.clip_grad=None', 'ema=None')
PLAIN += ('model.network.backbone.drop_path=0.0', 'model.network.backbone.timm_args.proj_drop_rate=0.0')
PLAIN += ('model.network.branches.sem.head.norm=layer', 'model.network.branches.sem.head.dropout=0.0')
PLAIN += ('schedule.max_iters=4', 'schedule.val_interval=4', 'optim_wrapper.optimizer.lr=0.1', 'checkpoint.best=None')


def test_each_process_takes_its_share():
    batches = share_batches(16, 4, 8)
    assert (batches.share, batches.effective) == (2, 64)
    assert str(batches) == 'batches of 16 images, 2 on each of 8 processes, 4 of them summed: 64 an update'
    assert describe_rate(share_batches(16, 1, 1), 1e-4) == 'batches of 16 images; lr 0.0001, 6.25e-06 for each image'
    assert describe_rate(batches, 1e-4).endswith('lr 0.0001, 1.56e-06 for each image')


@pytest.mark.parametrize(
    ('total', 'accumulated', 'processes', 'advice'),
    [
        (4, 4, 8, 'train_dataloader.batch_size=8 optim_wrapper.accumulative_counts=2, the same 16 images'),
        (16, 1, 3, 'start 1 or 2 processes; or a batch_size that is a multiple of 3'),
        (2, 1, 8, 'start 1 or 2 processes; or a batch_size that is a multiple of 8'),
    ],
)
def test_an_impossible_split_is_an_error_that_says_what_is_possible(total, accumulated, processes, advice):
    with pytest.raises(ConfigError, match=f'batch_size = {total}') as caught:
        share_batches(total, accumulated, processes)
    assert advice in caught.value.fix and 'batch_size' in caught.value.where and 'equal share' in caught.value.why
    if 'optim_wrapper' in advice:  # what is proposed can be done
        assert share_batches(8, 2, processes).effective == total * accumulated


def test_a_resumed_run_compares_whole_updates():
    text, changed = compare_batches(Batches(16, 1, 1), Batches(16, 1, 8))
    assert not changed and 'an update of 16 images as before' in text and '2 on each of 8 processes' in text
    text, changed = compare_batches(Batches(128, 1, 8), Batches(16, 1, 8))
    assert changed and 'was of 128 images' in text and 'is of 16 now' in text


def test_a_batch_that_fits_is_proposed_for_all_processes():
    error = does_not_fit([Proposal(2, 4, 0, False)], where='x', needed=1, available=2, option='', num_processes=8)
    assert 'train_dataloader.batch_size=16 optim_wrapper.accumulative_counts=4' in error.fix


def _train(
    folder: Path, rank: int, *, size: int, name: str, options: tuple[str, ...] = (), resume: str = ''
) -> tuple[dict, str]:
    """Return the weights of a run, and what it said."""
    handler, log = LogLines(), logging.getLogger('vitdense')
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    start = FromCheckpoint(read_checkpoint(folder / resume)) if resume else None
    cfg = load_config(folder / 'small.py', (*PLAIN, 'train_dataloader.batch_size=4', *options))
    runner = make_trainer(cfg, folder / name, device='cpu', start=start)
    assert runner.train_dataloader.batch_size == 4 // size
    runner.train()
    state = {key: value.clone() for key, value in runner.network_model.state_dict().items()}
    return state, '\n'.join(handler.lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'small.py').write_text(CONFIG)
    return tmp_path


def _two(folder: Path, rank: int) -> list[tuple[dict, str]]:
    whole = _train(folder, rank, size=2, name='two')
    return [whole, _train(folder, rank, size=2, name='on', resume='half/step_000002.pth')]


def test_two_processes_train_as_one_does_and_go_on_from_its_checkpoint(folder, run_ranks):
    whole, message = _train(folder, 0, size=1, name='one')
    assert 'batches of 4 images; lr 0.1, 0.025 for each image' in message
    _train(folder, 0, size=1, name='half', options=('schedule.val_interval=2', 'checkpoint.interval=2'))
    actual = run_ranks(partial(_two, folder))
    for rank in actual:
        for state, _ in rank:
            assert all(torch.allclose(state[name], whole[name], atol=1e-5) for name in whole)
    for name in ('two', 'on'):
        content = read_checkpoint(folder / name / 'step_000004.pth')
        assert (content['batch_size'], content['world_size'], content['accumulative_counts']) == (2, 2, 1)
        assert content['samples_seen'] == 16
    assert 'batches of 4 images, 2 on each of 2 processes; lr 0.1, 0.025 for each image' in actual[0][0][1]
    assert 'an update of 4 images as before (batches of 4 images)' in actual[0][1][1]


def test_a_run_whose_processes_cannot_share_its_batches_does_not_begin(folder, monkeypatch):
    monkeypatch.setattr('vitdense.distributed.processes.start_processes', lambda device: (0, 3))
    with pytest.raises(ConfigError, match='batch_size = 4'):
        _train(folder, 0, size=1, name='run')


TOTALS = {  # images of an update, as the recipes have them
    'pretraining/mae_vit_b_imagenet': 4096,
    'pretraining/mae_vit_l_imagenet': 4096,
    'classification/finetuned_mae_b_imagenet': 1024,
    'classification/linear_mae_b_imagenet': 16_384,
    'detection/dino_mae_b_coco_12ep': 16,
    'detection/detr_dinov2_s_coco': 16,
    'detection/deformable_vitadapter_deit_s_coco': 16,
    'detection/eomt_dinov2_l_coco_1280': 16,
    'detection/rf_detr_dinov2_s_coco_384': 16,
    'detection/lw_detr_small_coco': 32,
    'semantic/linear_dinov2_s_ade20k': 16,
    'semantic/upernet_vitadapter_deit_s_ade20k': 16,
    'multitask/dino_linear_dinov2_s_coco_ade20k': 16,
}


@pytest.mark.parametrize('config_name', TOTALS)
def test_configs_state_the_total_batch(config_name):
    cfg = load_config(ROOT / 'configs' / f'{config_name}.py')
    assert cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == TOTALS[config_name]
