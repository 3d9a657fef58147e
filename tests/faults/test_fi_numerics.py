"""FI-12 to FI-15: numbers that are not finite."""

from __future__ import annotations

import pytest
import torch

import tools.replay_nan as tool
from vitdense.checkpoints.run import find_checkpoint, read_checkpoint, steps_in
from vitdense.config.load import load_config
from vitdense.errors import NumericsError
from vitdense.metrics.base import refuse_non_finite_predictions
from vitdense.replay.files import read_replay, replay
from vitdense.tasks.mask_classification import InstanceTask, MaskSemanticTask
from vitdense.train.build import make_trainer
from vitdense.types import ImageClass, Meta, QueryOutputs, Reconstruction

pytestmark = pytest.mark.faults


class Overflow:
    """A hook that makes a weight of the head infinite before a step."""

    priority = 'NORMAL'

    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx + 1 == self.step:
            runner.network_model.network.heads['sem'].norm.weight.data[0] = float('inf')


@pytest.fixture
def ended(trainer, tmp_path):
    """The folder of a run whose numbers were not finite from step 10 on, and the error that ended it."""
    options = ('checkpoint.interval=4', 'schedule.max_iters=20', 'schedule.val_interval=20', 'ema=None')
    runner = trainer('run', options)
    runner._hooks.append(Overflow(10))
    with pytest.raises(NumericsError) as caught:
        runner.train()
    assert runner.iter == 13  # the step under way: the fourteenth, the fifth bad one
    return tmp_path / 'run', caught.value


def test_fi_15_a_step_that_is_not_finite_can_be_repeated(ended, capsys, tmp_path):
    folder, error = ended
    assert error.exit_code == 4 and f'tools/replay_nan.py {folder}/debug/nan_replay.pt' in error.fix
    newest = find_checkpoint(folder)
    content = read_checkpoint(newest)
    assert content['step'] == 8 < 10 and [path.name for path in steps_in(folder)][0] == newest.name
    assert all(value.isfinite().all() for value in content['state_dict'].values() if value.is_floating_point())

    path = folder / 'debug' / 'nan_replay.pt'
    recorded = read_replay(path)
    assert recorded['step'] == 14 and recorded['non_finite'][0] == 'parameter network.heads.sem.norm.weight'
    assert 'output network.heads.sem' in recorded['non_finite'] and 'loss sem.loss_ce' in recorded['non_finite']
    assert not any('output network.backbone' in name for name in recorded['non_finite'])
    torch.manual_seed(5)  # the state of this process does not matter
    assert replay(path)[1] == recorded['non_finite']
    assert tool.main([str(path)]) == 0
    assert 'the same tensors as in the run' in capsys.readouterr().out


NAN = float('nan')


@pytest.fixture
def joint(tmp_path, one_thread):
    """A runner with a segmentation, a detection and a classification head."""
    from tests.train.test_joint import CONFIG

    (tmp_path / 'joint.py').write_text(CONFIG)
    return make_trainer(load_config(tmp_path / 'joint.py'), tmp_path / 'run', device='cpu')


@pytest.mark.parametrize(
    ('part', 'message'),
    [
        ('heads.sem', '100.0% of the logits of an image are not finite'),
        ('heads.det', 'not finite: det.boxes, det.scores'),
        ('heads.cls', 'not finite: cls.scores'),
    ],
)
def test_no_metric_is_computed_from_predictions_that_are_not_finite(joint, part, message):
    for parameter in joint.network_model.network.get_submodule(part).parameters():
        parameter.data.fill_(NAN)
    with pytest.raises(NumericsError, match=message):
        joint.val_loop.run()


@pytest.mark.parametrize('task', [InstanceTask(top_k=2), MaskSemanticTask()])
@pytest.mark.parametrize('odd', [NAN, float('inf')])
def test_masks_of_logits_that_are_not_finite_are_an_error(task, odd):
    masks = torch.full((1, 2, 4, 4), odd)
    outputs = QueryOutputs(torch.zeros(1, 2, 3), mask_logits=masks, input_size=(16, 16))
    with pytest.raises(NumericsError, match='not finite'):
        task.predict(outputs, [Meta(0, size=(16, 16), orig_size=(16, 16))])


def test_a_prediction_that_is_not_finite_names_its_image():
    fine, odd = (ImageClass(torch.tensor([0.5, value])) for value in (0.5, NAN))
    refuse_non_finite_predictions([{'a': fine}, {'a': fine}], [Meta(0), Meta(1)])
    with pytest.raises(NumericsError, match='a.scores') as caught:
        refuse_non_finite_predictions([{'a': fine}, {'a': odd}], [Meta(0), Meta(1, path='x.png')])
    assert caught.value.where == 'x.png' and caught.value.exit_code == 4
    error = Reconstruction(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4) > 0, torch.tensor(NAN))
    with pytest.raises(NumericsError, match='mae.error'):
        refuse_non_finite_predictions([{'mae': error}], [Meta(0)])
