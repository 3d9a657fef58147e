"""Fit into memory: what is proposed for measured numbers, and the report of a worst-case step."""

import types
from pathlib import Path

import pytest
import torch
from torch import nn

import vitdense.commands.memory as fitting
from vitdense.commands.dry_run import dry_run
from vitdense.commands.memory import Measured, Proposal, does_not_fit, propose
from vitdense.config.load import load_config
from vitdense.errors import ResourceError

GIB = 2**30


def test_memory_grows_with_the_images():
    assert Measured(2, fixed=4, peak=10).at(8) == 28
    assert Measured(3, fixed=0, peak=10).at(1) == 4  # rounded up


def test_what_fits_stays_as_it_is():
    plain = Measured(2, fixed=4 * GIB, peak=8 * GIB)  # 2 GiB an image
    assert propose(40 * GIB, plain, batch_size=16) == [Proposal(16, 1, False, 36 * GIB)]


def test_smaller_batches_are_accumulated_and_recomputing_allows_larger_ones():
    plain = Measured(2, fixed=4 * GIB, peak=8 * GIB)
    recomputed = Measured(2, fixed=4 * GIB, peak=5 * GIB)
    actual = propose(16 * GIB, plain, recomputed, batch_size=16, accumulation=2)
    assert actual == [Proposal(4, 8, False, 12 * GIB), Proposal(16, 2, True, 12 * GIB)]


def test_recomputing_that_gains_nothing_is_not_proposed():
    plain = Measured(1, fixed=GIB, peak=2 * GIB)
    assert propose(6 * GIB, plain, plain, batch_size=8) == [Proposal(4, 2, False, 5 * GIB)]


def test_where_one_batch_runs_out_of_memory_only_recomputing_is_left():
    assert propose(10 * GIB, None, Measured(2, 0, 4 * GIB), batch_size=8) == [Proposal(4, 2, True, 8 * GIB)]
    assert propose(10 * GIB, None, None, batch_size=8) == []


def test_batch_normalisation_needs_two_images():
    plain = Measured(2, fixed=0, peak=4 * GIB)
    assert propose(3 * GIB, plain, batch_size=8, least=2) == []
    assert [actual.batch_size for actual in propose(3 * GIB, plain, batch_size=8)] == [1]


def test_batches_divide_the_images_of_a_step_of_the_optimizer():
    plain = Measured(1, fixed=0, peak=GIB)
    assert [actual[:2] for actual in propose(6 * GIB, plain, batch_size=6)] == [(3, 2)]  # 5 would fit, 6 = 3 x 2


def test_the_error_holds_the_options():
    actual = [Proposal(4, 8, False, 12 * GIB), Proposal(16, 2, True, 12 * GIB)]
    error = does_not_fit(actual, where='here', needed=36 * GIB, available=16 * GIB, option='+a.checkpointing=True')
    assert 'about 36.0 GiB; 16.0 GiB are available' in error.why
    assert 'train_dataloader.batch_size=4 optim_wrapper.accumulative_counts=8   ' in error.fix
    assert 'train_dataloader.batch_size=16 optim_wrapper.accumulative_counts=2 +a.checkpointing=True' in error.fix
    empty = does_not_fit([], where='here', needed=None, available=GIB, option='')
    assert 'more than there is' in empty.why and 'not even the smallest batch' in empty.fix


def test_control_groups_bound_the_memory(tmp_path):
    assert fitting._granted(tmp_path) is None
    (tmp_path / 'memory.max').write_text('max\n')
    (tmp_path / 'memory.current').write_text('70\n')
    assert fitting._granted(tmp_path) is None
    (tmp_path / 'memory.max').write_text('100\n')
    assert fitting._granted(tmp_path) == 30


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak cannot be reset')
def test_the_peak_of_the_process_is_measured_from_the_reset_on():
    cpu = torch.device('cpu')
    large = torch.ones(100 * 2**18)  # 100 MiB
    del large
    kept = [torch.ones(2**13) for _ in range(100 * 2**5)]  # 100 MiB in small pieces, which the allocator keeps
    last = kept[-1]  # behind it nothing is free, so it cannot give them back by itself
    del kept
    fitting.reset_peak(cpu)
    before = fitting.peak_bytes(cpu)
    large = torch.ones(60 * 2**18)
    assert 50 * 2**20 < fitting.peak_bytes(cpu) - before < 90 * 2**20
    assert fitting.memory_available(cpu) > fitting.memory_now(cpu)
    del large, last


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.checkpointing, self.recorded = False, []


def test_a_step_that_runs_out_of_memory_is_measured_with_recomputing():
    model = Deep()

    def train_step(batch, wrapper):
        model.recorded.append((len(batch.imgs), model.checkpointing))
        if not model.checkpointing:
            raise torch.OutOfMemoryError('full')

    runner = types.SimpleNamespace(
        model=types.SimpleNamespace(train=lambda: None, train_step=train_step),
        network_model=model,
        device=torch.device('cpu'),
    )
    wrapper = types.SimpleNamespace(zero_grad=lambda: None, initialize_count_status=lambda *_: None)
    batch = fitting.Batch(torch.zeros(4, 3, 8, 8), [None] * 4, [None] * 4)
    step = fitting._Step(runner, wrapper, batch)
    assert step.measure(2) is None and step.recomputed(2).batch_size == 2
    assert model.recorded == [(2, False), (2, True), (2, True)] and model.checkpointing is False


SMALL = [
    'model.network.backbone.timm_args.embed_dim=24',
    'model.network.backbone.timm_args.depth=2',
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'val_dataloader.dataset.num_images=2',
    'val_dataloader.batch_size=2',
]


def config():
    return load_config('configs/quickstart/shapes_segmentation.py', SMALL)


def test_dry_run_reports_the_worst_case(capsys):
    dry_run(config(), device='cpu')
    out = capsys.readouterr().out
    assert 'worst case: 4 images of 64 x 64' in out and 'GiB on cpu' in out and 'dry run: loss' in out


def test_dry_run_refuses_what_does_not_fit(monkeypatch):
    tried = []
    original = fitting._Step.measure
    monkeypatch.setattr(fitting, 'memory_available', lambda device: 9 * GIB)
    monkeypatch.setattr(fitting, 'peak_bytes', lambda device: fitting.memory_now(device) + 3 * GIB)
    monkeypatch.setattr(fitting._Step, 'measure', lambda self, number: tried.append(number) or original(self, number))
    with pytest.raises(ResourceError, match='does not fit') as caught:
        dry_run(config(), device='cpu')
    assert tried == [1, 1]  # one image, plain and recomputed; never the whole batch
    assert 'train_dataloader.batch_size=2 optim_wrapper.accumulative_counts=2' in caught.value.fix
