"""The model shell with a tiny network made by hand: losses, predictions, geometry, partial labels."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitdense.errors import ConfigError
from vitdense.model import DenseModel, Preprocessor
from vitdense.tasks.losses import CrossEntropy, Dice, OhemCrossEntropy, PixelFocal
from vitdense.tasks.semantic import SemanticTask
from vitdense.test_time.sliding_window import Tiler
from vitdense.test_time.tta import TestTimeAugmentation
from vitdense.types import IGNORE, Batch, Meta, PixelOutputs, SemanticMap, Target

CLASSES = {'semantic': ['sky', 'road', 'car']}


class TinyNetwork(nn.Module):
    """One convolution of 8 x 8 pixels as trunk, one 1 x 1 convolution for each branch."""

    divisor = 8
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.25, 0.3)

    def __init__(self, names=('sem',), *, num_classes, aux=False):
        super().__init__()
        self.names = tuple(names)
        self.aux = aux
        self.trunk = nn.Conv2d(3, 6, 8, stride=8)
        self.branches = nn.ModuleDict({name: nn.Conv2d(6, num_classes.get(name, 3), 1) for name in names})

    def forward(self, imgs, valid=None, training_inputs=None):
        self.recorded = imgs.detach(), valid
        trunk, size = self.trunk(imgs), tuple(imgs.shape[-2:])
        predictions = {name: branch(trunk) for name, branch in self.branches.items()}
        return {name: PixelOutputs(x, size, (x[..., ::2, ::2],) * self.aux) for name, x in predictions.items()}


def _model(tasks=None, **arguments):
    tasks = tasks or {'sem': SemanticTask()}
    network = dict(type=TinyNetwork, names=tuple(tasks), aux=arguments.pop('aux', False))
    return DenseModel(network, tasks, classes=CLASSES, **arguments)


def _batch(*sizes, orig_sizes=None, datasets=None):
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    imgs = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    targets, metas = [], []
    for row, size in enumerate(sizes):
        imgs[row, :, : size[0], : size[1]] = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        targets.append(Target(semantic=torch.randint(0, 3, size, dtype=torch.uint8)))
        dataset = datasets[row] if datasets else ''
        metas.append(Meta(row, dataset=dataset, orig_size=orig_sizes[row] if orig_sizes else size, size=size))
    return Batch(imgs, targets, metas)


def _losses(model, batch):
    data = model.data_preprocessor(batch, training=True)
    return model(*data[:3], valid=data.valid, mode='loss')


def test_padding_is_zero_after_normalisation_even_within_a_cell():
    network = TinyNetwork(num_classes={})
    sizes = [(14, 24), (16, 18), (9, 24)]  # all fill 2 x 3 cells, none fills its last cell in both directions
    batch = _batch(*sizes)
    data = Preprocessor(network.mean, network.std, divisor=8)(batch)
    assert data.imgs.shape == (3, 3, 16, 24) and data.valid is None
    for row, (height, width) in enumerate(sizes):
        outside = torch.ones(16, 24, dtype=torch.bool)
        outside[:height, :width] = False
        assert not data.imgs[row, :, outside].any()
        mean, std = (torch.tensor(value_of_batch).view(3, 1, 1) for value_of_batch in (network.mean, network.std))
        expected = (batch.imgs[row, :, :height, :width] / 255 - mean) / std
        assert torch.allclose(data.imgs[row, :, :height, :width], expected, atol=1e-5)


def test_valid_marks_images_when_a_whole_cell_is_empty():
    data = Preprocessor((0.5,) * 3, (0.2,) * 3, divisor=8)(_batch((16, 10), (5, 24)))
    assert data.valid.shape == (2, 16, 24)
    assert data.valid[0, :, :10].all() and not data.valid[0, :, 10:].any()
    assert data.valid[1, :5].all() and not data.valid[1, 5:].any()
    assert not data.imgs.masked_select(~data.valid[:, None]).any()


def test_number_of_classes_flows_from_the_data():
    model = _model()
    assert model.network.branches['sem'].out_channels == 3
    assert model.head_classes == {'sem': CLASSES['semantic']}


def test_branches_and_tasks_must_have_the_same_names():
    with pytest.raises(ConfigError, match=r"model.tasks = \['det'\]"):
        DenseModel(TinyNetwork(num_classes={}), {'det': SemanticTask()}, classes=CLASSES)


def test_losses_are_named_after_their_branch_and_nothing_else_is_called_loss():
    parts = [CrossEntropy(), Dice(), PixelFocal(), OhemCrossEntropy(min_kept=10)]
    model = _model({'sem': SemanticTask(losses=parts), 'coarse': SemanticTask()}, aux=True)
    losses = _losses(model, _batch((16, 24), (16, 24)))
    sem = {'loss_ce', 'loss_dice', 'loss_focal', 'loss_ohem', 'loss_aux', 'acc'}
    coarse = {'loss_ce', 'loss_aux', 'acc'}
    sem, coarse = sem | {'labelled'}, coarse | {'labelled'}
    assert losses.keys() == {f'sem.{key}' for key in sem} | {f'coarse.{key}' for key in coarse}
    # mmengine adds up every key that contains "loss": those must be the losses, and only those
    total, logged = model.parse_losses(losses)
    expected = sum(value for key, value in losses.items() if key.split('.')[1].startswith('loss_'))
    assert torch.allclose(total, expected) and torch.equal(logged['loss'], total)
    assert all(('loss' in key) == key.split('.')[1].startswith('loss_') for key in losses)
    assert losses['sem.acc'].requires_grad is False


def test_one_step_of_the_runner_lowers_the_loss():
    from mmengine.optim import OptimWrapper

    model, batch = _model(), _batch((16, 24), (16, 24))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    first = model.train_step(batch, wrapper)['loss']
    assert model.train_step(batch, wrapper)['loss'] < first


def test_tasks_read_their_own_data_sets_and_every_parameter_gets_a_gradient():
    tasks = {'ade': SemanticTask(datasets=['ade20k']), 'city': SemanticTask(datasets=['cityscapes'])}
    model = _model(tasks)
    batch = _batch((16, 24), (16, 24), datasets=['ade20k', 'ade20k'])
    losses = _losses(model, batch)
    model.parse_losses(losses)[0].backward()
    assert losses['ade.loss_ce'] > 0 and losses['city.loss_ce'] == 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.network.branches['ade'].weight.grad.any() and not model.network.branches['city'].weight.grad.any()


def test_a_mixed_batch_trains_each_task_on_its_rows():
    task = SemanticTask(datasets=['b'])
    batch = _batch((16, 24), (16, 24), (16, 24), datasets=['a', 'b', 'c'])
    model = _model({'sem': task})
    alone = Batch(batch.imgs[1:2], batch.targets[1:2], batch.metas[1:2])
    assert torch.allclose(_losses(model, batch)['sem.loss_ce'], _losses(model, alone)['sem.loss_ce'])


def test_all_ignored_and_unlabelled_batches_are_finite():
    model, batch = _model(aux=True), _batch((16, 24), (16, 24))
    ignored = [Target(semantic=torch.full((16, 24), IGNORE, dtype=torch.uint8))] * 2
    for targets in (ignored, [Target(), Target()], [Target(), ignored[0]]):
        model.zero_grad()
        losses = _losses(model, batch._replace(targets=targets))
        total = model.parse_losses(losses)[0]
        total.backward()
        assert total == 0 and all(value.isfinite() for value in losses.values())
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_predictions_have_the_original_size_for_images_of_any_size():
    orig_sizes = [(30, 47), (9, 20), (64, 64)]
    model, batch = _model(), _batch((16, 24), (13, 17), (24, 24), orig_sizes=orig_sizes)
    predictions = model.val_step(batch)
    data = model.data_preprocessor(batch)
    logits = model(*data[:3], valid=data.valid)['sem'].logits
    assert torch.equal(model.network.recorded[1], data.valid)
    for row, (output, meta) in enumerate(zip(predictions, batch.metas, strict=True)):
        assert isinstance(output['sem'], SemanticMap) and output['sem'].labels.shape == orig_sizes[row]
        full = functional.interpolate(logits[row : row + 1], (24, 24), mode='bilinear')
        full = functional.interpolate(full[..., : meta.size[0], : meta.size[1]], orig_sizes[row], mode='bilinear')
        assert torch.equal(output['sem'].labels.long(), full.argmax(1)[0])


def test_a_drawn_image_comes_back_in_place():
    """The network repeats colours: what is drawn top left must be labelled top left, in every size."""
    model = _model()
    with torch.no_grad():
        model.network.trunk.weight.zero_()
        model.network.trunk.bias.zero_()
        model.network.branches['sem'].weight.zero_()
        for colour in range(3):
            model.network.trunk.weight[colour, colour] = 1 / 64
            model.network.branches['sem'].weight[colour, colour] = 1.0
        model.network.branches['sem'].bias.zero_()
        model.data_preprocessor.mean.fill_(127.5)
        model.data_preprocessor.std.fill_(127.5)
    batch = _batch((40, 64), (64, 48), orig_sizes=[(80, 128), (32, 24)])
    for row, (height, width) in enumerate([(40, 64), (64, 48)]):
        batch.imgs[row] = 0
        batch.imgs[row, 0, : height // 2, :width] = 255  # class 0 above
        batch.imgs[row, 1, height // 2 : height, : width // 2] = 255  # class 1 below at the left
        batch.imgs[row, 2, height // 2 : height, width // 2 : width] = 255  # class 2 below at the right
    for output in model.val_step(batch):
        labels = output['sem'].labels
        height, width = labels.shape
        margin_y, margin_x = height // 8, width // 8  # cells of 8 pixels blur the borders
        assert (labels[: height // 2 - margin_y] == 0).all()
        assert (labels[height // 2 + margin_y :, : width // 2 - margin_x] == 1).all()
        assert (labels[height // 2 + margin_y :, width // 2 + margin_x :] == 2).all()


def test_test_time_strategies_get_the_divisor_and_tta_runs_only_when_asked():
    model = _model(tiler=dict(type=Tiler, size=12, stride=8), tta=dict(type=TestTimeAugmentation, scales=(1.0, 1.5)))
    assert isinstance(model.tiler, Tiler) and model.tiler.divisor == 8 and model.tta.divisor == 8
    batch, calls = _batch((20, 28)), []
    model.network.register_forward_hook(lambda module, inputs, outputs: calls.append(tuple(inputs[0].shape[-2:])))
    assert model.val_step(batch)[0]['sem'].labels.shape == (20, 28)
    tiled = len(calls)
    assert tiled == 3 * 4 and set(calls) == {(16, 16)}  # windows of 12 pixels, padded to whole cells
    model.use_tta = True
    assert model.val_step(batch)[0]['sem'].labels.shape == (20, 28)
    assert len(calls) - tiled > 2 * tiled


def test_autocast_holds_for_the_network_only():
    model = _model()
    model.amp = torch.bfloat16
    batch = _batch((16, 24))
    data = model.data_preprocessor(batch)
    assert model(*data[:3])['sem'].logits.dtype == torch.bfloat16
    assert _losses(model, batch)['sem.loss_ce'].dtype == torch.float32


def test_a_part_without_a_name_of_its_protocol_is_refused_when_the_model_is_built():
    network = TinyNetwork(num_classes={})
    del network.names
    with pytest.raises(ConfigError, match='TinyNetwork has no names') as caught:
        DenseModel(network, {'sem': SemanticTask()})
    assert caught.value.where == 'model.network'
    with pytest.raises(ConfigError, match='TinyNetwork has no field, datasets, loss, predict'):
        _model({'sem': TinyNetwork(num_classes={})})
