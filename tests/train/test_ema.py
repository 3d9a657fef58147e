"""The average of weights, and of buffers where it is asked for, computed by hand."""

import torch
from torch import nn

from vitdense.train.ema import Ema


def trained(*, buffers: bool) -> tuple[nn.Module, Ema, list[dict]]:
    """Train a batch norm for three steps; return the model, the average, and the states after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.register_buffer('table', torch.zeros(2), persistent=False)
    ema, states = Ema(model, momentum=0.1, buffers=buffers), []
    states.append({name: value.clone() for name, value in model.state_dict().items()})
    for step in range(3):
        model(torch.randn(2, 3, 5, 5) + step)
        with torch.no_grad():
            model[0].weight += 1
        ema.update()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return model, ema, states


def averaged(states: list[dict], name: str) -> torch.Tensor:
    value = states[0][name]
    for step, state in enumerate(states[1:]):
        momentum = max(0.1, 9 / (10 + step))
        value = (1 - momentum) * value + momentum * state[name]
    return value


def test_running_statistics_are_averaged_with_the_weights():
    """LW-DETR, util/utils.py: ModelEma averages every value of the state dict."""
    model, ema, states = trained(buffers=True)
    assert 'table' not in ema.names and '1.num_batches_tracked' not in ema.names
    live = {name: value.clone() for name, value in model.state_dict().items()}
    ema.apply()
    for name in ('0.weight', '1.running_mean', '1.running_var'):
        torch.testing.assert_close(model.state_dict()[name], averaged(states, name))
        assert not torch.equal(model.state_dict()[name], live[name])
    checkpoint = ema.state(model.state_dict())
    torch.testing.assert_close(checkpoint['state_dict']['1.running_var'], averaged(states, '1.running_var'))
    assert torch.equal(checkpoint['training_state_dict']['1.running_var'], live['1.running_var'])
    ema.remove()
    assert all(torch.equal(value, live[name]) for name, value in model.state_dict().items())
    again = Ema(model, momentum=0.1, buffers=True)
    again.restore(checkpoint)
    torch.testing.assert_close(again.average[again.names.index('1.running_var')], averaged(states, '1.running_var'))


def test_buffers_stay_as_they_are_unless_they_are_asked_for():
    model, ema, states = trained(buffers=False)
    assert set(ema.names) == {'0.weight', '0.bias', '1.weight', '1.bias'}
    ema.apply()
    assert torch.equal(model.state_dict()['1.running_var'], states[-1]['1.running_var'])
