"""Classification losses against torch and timm, partial labels on several ranks, and predictions."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch.nn import functional

from vitdense.errors import ConfigError
from vitdense.tasks.classification import ClassificationTask
from vitdense.types import ClassOutputs, Meta, Target

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [1.0, 1.5, -2.0]])
NUMBERS = torch.tensor([0, 1, 1])
SHARES = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6], [0.0, 1.0, 0.0]])
METAS = [Meta(row) for row in range(3)]


def losses_of(task: ClassificationTask, labels, logits=LOGITS):
    return task.loss(ClassOutputs(logits), [Target(image_label=label) for label in labels])


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_is_that_of_torch_for_numbers_and_for_shares(smoothing):
    task = ClassificationTask(label_smoothing=smoothing)
    losses = losses_of(task, NUMBERS)
    expected = functional.cross_entropy(LOGITS, NUMBERS, label_smoothing=smoothing)
    torch.testing.assert_close(losses['loss_ce'], expected)
    assert losses.keys() == {'loss_ce', 'acc'} and losses['acc'] == pytest.approx(2 / 3)
    smooth = SHARES * (1 - smoothing) + smoothing / 3
    torch.testing.assert_close(losses_of(task, SHARES)['loss_ce'], SoftTargetCrossEntropy()(LOGITS, smooth))
    assert ClassificationTask().label_smoothing == 0
    lesser = torch.tensor([0.3, 0.7, 0.0])  # the likeliest class is not its largest part
    assert losses_of(task, [lesser, SHARES[1]], LOGITS[:2])['acc'] == 0.5


def test_numbers_and_shares_may_stand_in_one_batch():
    mixed = losses_of(ClassificationTask(), [NUMBERS[0], SHARES[1], NUMBERS[2]])['loss_ce']
    one_hot = functional.one_hot(NUMBERS, 3).float()
    targets = torch.stack([one_hot[0], SHARES[1], one_hot[2]])
    torch.testing.assert_close(mixed, functional.cross_entropy(LOGITS, targets))


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_binary_cross_entropy_is_that_of_timm(smoothing):
    task = ClassificationTask(loss='binary_cross_entropy', label_smoothing=smoothing)
    expected = BinaryCrossEntropy(smoothing=smoothing)(LOGITS, NUMBERS)
    torch.testing.assert_close(losses_of(task, NUMBERS)['loss_bce'], expected)
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    expected = functional.binary_cross_entropy_with_logits(LOGITS, several * (1 - smoothing) + smoothing / 3)
    losses = losses_of(task, several)
    torch.testing.assert_close(losses['loss_bce'], expected)
    assert losses['acc'] == pytest.approx(2 / 3)  # an image in which nothing is true cannot be right


def test_images_without_a_label_are_left_out():
    logits = LOGITS.clone().requires_grad_()
    losses = losses_of(ClassificationTask(), [None, NUMBERS[1], None], logits)
    torch.testing.assert_close(losses['loss_ce'], functional.cross_entropy(LOGITS[1:2], NUMBERS[1:2]))
    losses['loss_ce'].backward()
    assert not logits.grad[0].any() and logits.grad[1].any()


def test_without_any_label_the_loss_is_zero_with_a_gradient():
    logits = torch.tensor([[float('inf'), 0.0, float('nan')]], requires_grad=True)
    losses = losses_of(ClassificationTask(), [None], logits)
    losses['loss_ce'].backward()
    assert losses['loss_ce'] == 0 and losses['acc'] == 0 and not logits.grad.any()


def _rank(rank: int):
    logits = LOGITS.clone().requires_grad_()
    labels = [NUMBERS[0], NUMBERS[1], NUMBERS[2]] if rank == 0 else [None, None, None]
    loss = losses_of(ClassificationTask(), labels, logits)['loss_ce']
    loss.backward()
    return loss.detach(), logits.grad


def test_the_mean_over_ranks_is_the_loss_of_the_one_big_batch(run_ranks):
    (first, gradient), (second, empty) = run_ranks(_rank)
    torch.testing.assert_close((first + second) / 2, functional.cross_entropy(LOGITS, NUMBERS))
    assert gradient.any() and not empty.any()


def test_predictions_are_probabilities():
    (first, *_) = ClassificationTask().predict(ClassOutputs(LOGITS), METAS)
    torch.testing.assert_close(first.scores, LOGITS[0].softmax(0))
    (first, *_) = ClassificationTask(loss='binary_cross_entropy').predict(ClassOutputs(LOGITS.bfloat16()), METAS)
    torch.testing.assert_close(first.scores, LOGITS[0].sigmoid())


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="ClassificationTask.field = 'label'"):
        ClassificationTask(field='label')
    with pytest.raises(ConfigError, match="the choices are 'cross_entropy'"):
        ClassificationTask(loss='ce')
    with pytest.raises(ConfigError, match='a word would be read letter by letter'):
        ClassificationTask(datasets='imagenet')
    with pytest.raises(ValueError, match=r'shape \(2,\) for 3 classes'):
        losses_of(ClassificationTask(), [torch.ones(2)], LOGITS[:1])
