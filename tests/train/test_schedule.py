"""Learning rates equal those of torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from vitdense.errors import ConfigError
from vitdense.train.schedule import Schedule, make_schedule


def rates(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize(
    ('shape', 'decay'),
    [
        (dict(decay='poly', power=0.9), lambda o: lr_scheduler.PolynomialLR(o, 15, power=0.9)),
        (dict(decay='cosine', min_ratio=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, 15, eta_min=0.1)),
        (dict(decay='constant'), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_warm_up_and_decay_equal_torch(shape, decay):
    schedule = Schedule(20, 20, warmup_iters=5, warmup_ratio=0.01, **shape)
    warmup = rates(lambda o: lr_scheduler.LinearLR(o, 0.01, total_iters=5), 5)
    assert [schedule.ratio(step) for step in range(20)] == pytest.approx([*warmup, *rates(decay, 15)], abs=1e-12)


def test_steps_equal_torch():
    schedule = Schedule(10, 10, decay='step', milestones=(4, 7), gamma=0.5)
    expected = rates(lambda o: lr_scheduler.MultiStepLR(o, [4, 7], gamma=0.5), 10)
    assert [schedule.ratio(step) for step in range(10)] == expected


def test_epochs_become_steps():
    schedule = make_schedule(
        max_iters=None, max_epochs=3, val_interval=1, steps_per_epoch=10, decay='step', milestones=(2,)
    )
    assert (schedule.max_iters, schedule.val_interval, schedule.milestones) == (30, 10, (20,))


def test_an_interval_that_is_none_is_refused():
    for interval in (-1, 1.5, 'epoch'):
        with pytest.raises(ConfigError, match='val_interval'):
            make_schedule(max_iters=5, max_epochs=None, val_interval=interval, steps_per_epoch=10)


def test_without_an_interval_there_is_one_validation_at_the_end():
    schedule = make_schedule(max_iters=None, max_epochs=3, val_interval=None, steps_per_epoch=10, warmup_iters=4)
    assert (schedule.max_iters, schedule.val_interval, schedule.warmup_iters) == (30, 30, 4)
    assert make_schedule(max_iters=1, max_epochs=None, val_interval=5, steps_per_epoch=10)[:2] == (1, 1)


def test_defaults_and_what_lies_beyond_the_end():
    assert Schedule(7, 3) == (7, 3, 0, 1e-6, 'poly', 1.0, (), 0.1, 0.0, 0)
    assert [Schedule(10, 10).ratio(step) for step in (9, 10, 15)] == pytest.approx([0.1, 0.0, 0.0])
    assert Schedule(1, 1).ratio(1) == 0.0
    cosine = Schedule(10, 10, decay='cosine', min_ratio=0.2)
    assert [cosine.ratio(step) for step in (0, 5, 10, 15)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_the_first_steps_of_warm_ups_and_the_first_behind_them():
    schedule = Schedule(100, 100, warmup_iters=10, warmup_ratio=0.01, backbone_warmup_iters=20)
    assert [schedule.ratio(step, backbone=True) for step in (9, 10, 20)] == pytest.approx([0.0, 0.01, 0.505])
    assert schedule.ratio(0) == pytest.approx(0.01)
    passed = Schedule(100, 100, warmup_iters=10, decay='step', milestones=(10, 4), gamma=0.5)
    assert passed.ratio(10) == 0.25  # both are behind it


@pytest.mark.parametrize(
    'length',
    [
        dict(max_iters=None, max_epochs=None),
        dict(max_iters=5, max_epochs=5),
        dict(max_iters=0, max_epochs=None),
        dict(max_iters=5, max_epochs=None, warmup_iters=5),
        dict(max_iters=5, max_epochs=None, warmup_iters=2, backbone_warmup_iters=3),
        dict(max_iters=5.0, max_epochs=None),
    ],
)
def test_lengths_that_make_no_sense_are_refused(length):
    with pytest.raises(ConfigError):
        make_schedule(val_interval=None, steps_per_epoch=10, **length)


def test_a_decay_ends_at_zero_by_default():
    schedule = make_schedule(max_iters=100, max_epochs=None, val_interval=None, steps_per_epoch=7, decay='poly')
    assert schedule.max_iters == schedule.val_interval == 100
    assert schedule.ratio(99) == pytest.approx(0.01) and schedule.ratio(0) == 1.0


def test_the_vit_has_a_rate_of_zero_while_the_rest_warms_up_as_in_eomt():
    """TwoStageWarmupPolySchedule of tue-mps/eomt: two warm-ups one after the other, each with a decay behind it."""
    schedule = Schedule(100, 100, warmup_iters=10, warmup_ratio=0.0, backbone_warmup_iters=20, decay='poly', power=0.9)
    rates = [(schedule.ratio(step), schedule.ratio(step, backbone=True)) for step in (0, 5, 10, 20, 30, 65)]
    expected = [(0, 0), (0.5, 0), (1, 0), (80 / 90, 0.5), (70 / 90, 1), (35 / 90, 0.5)]
    powers = [(0.9 if step >= 10 else 1, 0.9 if step >= 30 else 1) for step in (0, 5, 10, 20, 30, 65)]
    for got, wanted, power in zip(rates, expected, powers, strict=True):
        assert got == pytest.approx(tuple(x**p for x, p in zip(wanted, power, strict=True)))
