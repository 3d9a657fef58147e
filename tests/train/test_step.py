"""A step whose gradients are not finite is skipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitdense.checkpoints.run import find_checkpoint, read_checkpoint
from vitdense.errors import ConfigError, NumericsError
from vitdense.train.step import Clipping, GuardedOptimWrapper, read_clipping


def update(guard: GuardedOptimWrapper, loss: torch.Tensor) -> float:
    """Take one step as the trainer does; return the norm of the gradients."""
    guard.backward(guard.scale_loss(loss))
    norm = guard.clip_gradients()
    guard.step_if_finite(norm)
    guard.zero_grad()
    return norm


def wrapper(model: nn.Module, **options) -> GuardedOptimWrapper:
    from mmengine.logging import MessageHub

    MessageHub.get_instance('test_stepping')
    return GuardedOptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), model, **options)


def test_a_bad_step_changes_neither_weights_nor_statistics():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    guard = wrapper(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guard.keep_statistics()
    guard.update_params(model(torch.tensor([[1.0, float('nan')], [0.0, 1.0]])).sum())
    assert guard.skipped_steps == guard.skipped_in_row == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    guard.keep_statistics()
    guard.update_params(model(torch.rand(2, 2)).square().sum())
    assert (guard.skipped_steps, guard.skipped_in_row) == (1, 0)
    assert not torch.equal(model[0].running_mean, before['0.running_mean'])


def test_without_any_gradient_neither_decay_nor_momentum_nor_statistics_move():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    guard = GuardedOptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5), model)
    for factor in (1.0, 0.0):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        guard.keep_statistics()
        guard.update_params(factor * model(torch.rand(4, 2)).square().sum())
        same = [torch.equal(value, before[name]) for name, value in model.state_dict().items()]
        assert all(same) == (factor == 0) and any(same) == (factor == 0)
    assert guard.skipped_steps == guard.skipped_in_row == 0


def test_five_in_a_row_end_the_run():
    model = nn.Linear(1, 1)
    guard = wrapper(model)
    for _ in range(4):
        guard.update_params(model(torch.full((1, 1), float('inf'))).sum())
    with pytest.raises(NumericsError, match='5 steps in a row'):
        guard.update_params(model(torch.full((1, 1), float('inf'))).sum())


def test_clipping_bounds_the_global_norm():
    model = nn.Linear(1, 1)
    guard = wrapper(model, clipping=Clipping(0.5))
    before = torch.cat([value.detach().flatten().clone() for value in model.parameters()])
    norm = update(guard, 100 * model(torch.ones(1, 1)).sum())
    moved = torch.cat([value.detach().flatten() for value in model.parameters()]) - before
    assert norm == pytest.approx(100 * 2**0.5)
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)  # the rate is 1


def test_by_part_the_gradients_of_one_branch_do_not_shrink_those_of_the_backbone():
    model = nn.Module()
    model.network = nn.Module()
    model.network.backbone = nn.Linear(1, 1, bias=False)
    model.network.adapters = nn.ModuleDict({'det': nn.Linear(1, 1, bias=False), 'sem': nn.Linear(1, 1, bias=False)})
    model.network.heads = nn.ModuleDict({'det': nn.Linear(1, 1, bias=False), 'sem': nn.Linear(1, 1, bias=False)})
    model.scale = nn.Parameter(torch.zeros(1))
    guard = wrapper(model, clipping=Clipping(0.5, by_part=True))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {'network.backbone': 0.4, 'network.adapters.det': 30.0, 'network.heads.det': 40.0, 'scale': 7.0}
    gradients = {name if name == 'scale' else f'{name}.weight': grad_output for name, grad_output in gradients.items()}
    norm = update(
        guard, sum(grad_output * dict(model.named_parameters())[name].sum() for name, grad_output in gradients.items())
    )
    moved = {name: (before[name] - value.detach()).item() for name, value in model.named_parameters()}
    assert moved == pytest.approx(
        {
            'network.backbone.weight': 0.4,  # below the norm: as it is
            'network.adapters.det.weight': 0.3,  # one branch, one norm: 50
            'network.heads.det.weight': 0.4,
            'network.adapters.sem.weight': 0.0,
            'network.heads.sem.weight': 0.0,
            'scale': 0.5,
        },
        rel=1e-4,
    )
    assert norm == pytest.approx((0.4**2 + 50**2 + 7**2) ** 0.5)


def test_clip_grad_is_read_whole():
    assert read_clipping(None) is None and read_clipping({'max_norm': 2}) == Clipping(2.0)
    assert read_clipping({'max_norm': 2, 'by_part': True}) == Clipping(2.0, by_part=True)
    for wrong in ({'max_value': 2}, {'max_norm': -1}, {'by_part': True}, {'max_norm': 1, 'by_part': 'det'}):
        with pytest.raises(ConfigError, match='clip_grad'):
            read_clipping(wrong)


def test_accumulated_batches_step_as_one_large_batch():
    data, weights = torch.rand(4, 3), []
    for counts, batches in ((1, [data]), (2, data.split(2))):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        guard = wrapper(model, accumulative_counts=counts)
        for batch in batches:
            guard.update_params(model(batch).square().mean())
        weights.append(model.weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-6)


def test_overflows_are_how_a_loss_scale_is_found():
    model = nn.Linear(1, 1)
    guard = wrapper(model, scaled=True)
    scale = guard.scaler.get_scale()
    before = model.weight.detach().clone()
    for _ in range(8):  # more than five in a row: the scale is still far above 1
        guard.update_params(model(torch.full((1, 1), 1e37)).sum())
    assert guard.skipped_steps == 8 and guard.skipped_in_row == 0
    assert guard.scaler.get_scale() == scale / 2**8 and torch.equal(model.weight, before)
    norm = update(guard, model(torch.ones(1, 1)).sum())
    assert norm == pytest.approx(2**0.5) and not torch.equal(model.weight, before)


class BadLoss:
    """A hook that makes the loss NaN from a step on."""

    priority = 'NORMAL'

    def __init__(self, step: int, last: int = 10**9) -> None:
        self.step, self.last = step, last

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        bad = self.step <= batch_idx + 1 <= self.last
        runner.optim_wrapper.scale_loss = (lambda loss: loss * float('nan')) if bad else (lambda loss: loss)


def test_a_run_with_nan_losses_ends_with_finite_checkpoints(trainer, tmp_path):
    runner = trainer('run', ('checkpoint.interval=2', 'schedule.max_iters=20', 'schedule.val_interval=20'))
    runner._hooks.append(BadLoss(6))
    with pytest.raises(NumericsError):
        runner.train()
    assert runner.iter == 9  # the tenth step is the fifth bad one
    content = read_checkpoint(find_checkpoint(tmp_path / 'run'))
    assert all(value.isfinite().all() for value in content['state_dict'].values() if value.is_floating_point())


def test_a_single_bad_step_is_skipped_shown_and_counted(trainer, tmp_path, caplog):
    import json
    import logging

    logging.getLogger('vitdense').propagate = True
    runner = trainer('run')
    runner._hooks.append(BadLoss(3, 3))
    runner.train()
    assert json.loads((tmp_path / 'run' / 'metrics.json').read_text())['skipped_steps'] == 1
    text = 'step skipped: the norm of its gradients is not finite (1 in a row'
    assert len({id(each) for each in caplog.records if text in each.getMessage()}) == 1  # a record may be handled twice
