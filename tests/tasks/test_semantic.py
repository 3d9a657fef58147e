"""The semantic task: geometry of the loss, blank images, and predictions in the original size."""

import pytest
import torch
from torch.nn import functional

from vitdense.errors import ConfigError
from vitdense.tasks.losses import CrossEntropy, Dice
from vitdense.tasks.semantic import SemanticTask
from vitdense.types import IGNORE, Meta, PixelOutputs, Target


def _labels(height, width, classes=3):
    return torch.randint(0, classes, (height, width), dtype=torch.uint8)


def test_loss_is_cross_entropy_of_resized_and_cropped_logits():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    targets = [Target(semantic=_labels(16, 18)), Target(semantic=_labels(13, 20))]
    losses = SemanticTask().loss(PixelOutputs(logits, (16, 20)), targets)
    full = functional.interpolate(logits, (16, 20), mode='bilinear')
    parts = [full[0, :, :, :18].flatten(1), full[1, :, :13].flatten(1)]
    target = torch.cat([target.semantic.flatten() for target in targets]).long()
    assert torch.allclose(losses['loss_ce'], functional.cross_entropy(torch.cat(parts, 1).T, target))


def test_images_without_labels_are_left_out():
    logits = torch.randn(3, 3, 4, 4, requires_grad=True)
    targets = [Target(), Target(semantic=_labels(8, 8)), Target()]
    loss = SemanticTask().loss(PixelOutputs(logits, (8, 8)), targets)['loss_ce']
    alone = SemanticTask().loss(PixelOutputs(logits[1:2], (8, 8)), targets[1:2])['loss_ce']
    assert torch.equal(loss, alone)
    loss.backward()
    assert not logits.grad[[0, 2]].any() and logits.grad[1].any()


@pytest.mark.parametrize('poison', [1.0, float('nan'), float('inf')])
def test_without_any_label_every_parameter_gets_a_zero_gradient(poison):
    logits = torch.full((2, 3, 4, 4), poison, requires_grad=True)
    aux = torch.full((2, 3, 2, 2), poison, requires_grad=True)
    task = SemanticTask(losses=[CrossEntropy(), Dice()])
    losses = task.loss(PixelOutputs(logits, (8, 8), (aux,)), [Target(), Target()])
    assert losses.keys() == {'loss_ce', 'loss_dice', 'loss_aux', 'acc'}
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(value.item() == 0 for value in losses.values())
    assert torch.equal(logits.grad, torch.zeros_like(logits)) and torch.equal(aux.grad, torch.zeros_like(aux))


def test_auxiliary_outputs_get_the_same_losses():
    logits, aux = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)
    targets = [Target(semantic=_labels(8, 8))]
    task = SemanticTask(losses=[CrossEntropy(weight=2), dict(type='vitdense.tasks.losses.Dice')], aux_weight=0.25)
    losses = task.loss(PixelOutputs(logits, (8, 8), (aux, aux)), targets)
    plain = task.loss(PixelOutputs(aux, (8, 8)), targets)
    assert torch.allclose(losses['loss_aux'], 0.25 * 2 * (plain['loss_ce'] + plain['loss_dice']))
    assert SemanticTask().aux_weight == 0.4  # mmsegmentation's auxiliary head


def test_accuracy_reads_labelled_pixels_only():
    labels = _labels(16, 16)
    labels[:8] = IGNORE
    right = functional.one_hot(labels.long().where(labels != IGNORE, 0), 3).permute(2, 0, 1)[None].float()
    task = SemanticTask()
    assert task.loss(PixelOutputs(right, (16, 16)), [Target(semantic=labels)])['acc'] == 1
    assert task.loss(PixelOutputs(-right, (16, 16)), [Target(semantic=labels)])['acc'] == 0
    labels[:], labels[12, 8] = IGNORE, 1  # a single pixel of the sample
    assert task.loss(PixelOutputs(torch.eye(3)[1].view(1, 3, 1, 1), (16, 16)), [Target(semantic=labels)])['acc'] == 1


def test_accuracy_reads_every_fourth_pixel_of_every_fourth_row():
    labels, wrong = torch.zeros(20, 20, dtype=torch.uint8), torch.ones(20, 20)
    wrong[::4, ::4] = 0
    logits = torch.stack([1 - wrong, wrong])[None]
    assert SemanticTask().loss(PixelOutputs(logits, (20, 20)), [Target(semantic=labels)])['acc'] == 1


def test_low_precision_logits_and_autocast_give_a_float32_loss():
    logits = torch.randn(1, 3, 4, 4)
    targets = [Target(semantic=_labels(8, 8))]
    task = SemanticTask(losses=[CrossEntropy(), Dice()])
    expected = task.loss(PixelOutputs(logits.bfloat16().float(), (8, 8)), targets)
    with torch.autocast('cpu', torch.bfloat16):
        losses = task.loss(PixelOutputs(logits.bfloat16(), (8, 8)), targets)
    assert all(torch.equal(losses[key], expected[key]) for key in expected)
    assert losses['loss_dice'].dtype == torch.float32


def test_targets_larger_than_the_input_are_refused():
    for size, pixels in (((9, 8), (8, 8)), ((9, 8), (8, 16)), ((8, 9), (16, 8))):
        with pytest.raises(ValueError, match='larger than the padded input'):
            SemanticTask().loss(PixelOutputs(torch.randn(1, 3, 2, 2), pixels), [Target(semantic=_labels(*size))])


def test_predictions_undo_the_geometry_in_one_order():
    logits = torch.randn(2, 4, 5, 6)
    metas = [Meta(0, orig_size=(37, 41), size=(18, 20)), Meta(1, orig_size=(11, 30), size=(20, 24))]
    outputs = SemanticTask().predict(PixelOutputs(logits, (20, 24)), metas)
    for row, (output, meta) in enumerate(zip(outputs, metas, strict=True)):
        full = functional.interpolate(logits[row : row + 1], (20, 24), mode='bilinear')
        full = functional.interpolate(full[..., : meta.size[0], : meta.size[1]], meta.orig_size, mode='bilinear')
        assert output.labels.dtype == torch.uint8
        assert torch.equal(output.labels.long(), full.argmax(1)[0])


@pytest.mark.parametrize(
    'arguments',
    [
        dict(losses=[]),
        dict(losses=[CrossEntropy(), CrossEntropy(weight=2)]),
        dict(field='semantics'),
        dict(datasets='ade20k'),
    ],
)
def test_wrong_arguments_are_errors_now(arguments):
    with pytest.raises(ConfigError) as caught:
        SemanticTask(**arguments)
    assert caught.value.fix
