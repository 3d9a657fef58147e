"""Losses against torch, torchvision, hand formulas and two processes."""

import dataclasses

import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from vitdense.errors import ConfigError
from vitdense.tasks.losses import CrossEntropy, Dice, OhemCrossEntropy, PixelFocal, share_of_count
from vitdense.types import IGNORE

PARTS = [
    CrossEntropy(),
    CrossEntropy(average='all', class_weights=(1, 2, 0.5, 1, 3), label_smoothing=0.1),
    Dice(),
    Dice(smooth=0, exponent=2, over='batch', absent=True),
    PixelFocal(gamma=0.5),
    PixelFocal(alpha=0.25, form='sigmoid'),
    OhemCrossEntropy(min_kept=5),
    OhemCrossEntropy(average='all'),
]


@pytest.fixture
def logits():
    return (torch.randn(2, 5, 6, 7) * 2).requires_grad_()


@pytest.fixture
def labels():
    labels = torch.randint(0, 5, (2, 6, 7))
    labels[torch.rand(2, 6, 7) < 0.3] = IGNORE
    return labels


@pytest.mark.parametrize('part', PARTS, ids=repr)
def test_all_ignored_is_exactly_zero_with_zero_gradients(part, logits):
    loss = part(logits, torch.full((2, 6, 7), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize('part', PARTS, ids=repr)
def test_no_pixels_at_all_is_zero(part):
    logits = torch.zeros(1, 5, 0, 0, requires_grad=True)
    loss = part(logits, torch.zeros((1, 0, 0), dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize('part', PARTS, ids=repr)
def test_ignored_pixels_do_not_matter(part, logits, labels):
    other = torch.where((labels == IGNORE)[:, None], 50.0, logits)
    assert torch.allclose(part(logits, labels), part(other, labels), rtol=1e-6)


@pytest.mark.parametrize('part', PARTS, ids=repr)
@pytest.mark.parametrize('scale', [0.0, 1e4])
def test_extreme_logits_give_finite_gradients(part, labels, scale):
    logits = (torch.randn(2, 5, 6, 7) * scale).requires_grad_()
    loss = part(logits, labels)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_cross_entropy_equals_torch(logits, labels):
    weights = (1.0, 2.0, 0.5, 1.0, 3.0)
    ours = CrossEntropy(class_weights=weights, label_smoothing=0.1, weight=2)(logits, labels)
    theirs = functional.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=IGNORE, label_smoothing=0.1)
    assert torch.allclose(ours, 2 * theirs)


def test_average_over_all_divides_by_every_pixel(logits, labels):
    ours = CrossEntropy(average='all')(logits, labels)
    pixels = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction='none')
    assert torch.allclose(ours, pixels.mean())  # ignored pixels are zeros that count


def test_softmax_focal_by_hand():
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).view(1, 3, 1, 1)
    loss = PixelFocal(gamma=2, alpha=0.5)(logits, torch.tensor([[[1]]]))
    assert loss.item() == pytest.approx(0.5 * 0.8**2 * -torch.log(torch.tensor(0.2)).item(), rel=1e-5)


def test_focal_with_gamma_zero_is_cross_entropy(logits, labels):
    assert torch.allclose(PixelFocal(gamma=0)(logits, labels), CrossEntropy()(logits, labels))


def test_sigmoid_focal_equals_torchvision_over_labelled_pixels(logits, labels):
    valid = labels != IGNORE
    chosen = logits.movedim(1, -1)[valid]  # (N, K)
    targets = functional.one_hot(labels[valid], 5).float()
    theirs = sigmoid_focal_loss(chosen, targets, alpha=0.25, gamma=2, reduction='sum') / valid.sum()
    assert torch.allclose(PixelFocal(alpha=0.25, form='sigmoid')(logits, labels), theirs)
    plain = sigmoid_focal_loss(chosen, targets, alpha=-1, gamma=2, reduction='sum') / valid.sum()
    assert torch.allclose(PixelFocal(form='sigmoid')(logits, labels), plain)


def test_dice_by_hand():
    # two pixels, two classes: p = (0.75, 0.25) is class 0, p = (0.5, 0.5) is class 1
    logits = torch.log(torch.tensor([[0.75, 0.5], [0.25, 0.5]])).view(1, 2, 1, 2)
    labels = torch.tensor([[[0, 1]]])
    first = 2 * 0.75 / (1.25 + 1)
    second = 2 * 0.5 / (0.75 + 1)
    assert Dice(smooth=0)(logits, labels).item() == pytest.approx(1 - (first + second) / 2, rel=1e-5)
    squared = 2 * 0.75 / (0.75**2 + 0.5**2 + 1), 2 * 0.5 / (0.25**2 + 0.5**2 + 1)
    assert Dice(smooth=0, exponent=2)(logits, labels).item() == pytest.approx(1 - sum(squared) / 2, rel=1e-5)


def _soft_dice(logits, labels, smooth):
    """Soft Dice over the batch, averaged over the classes that occur: the plain formula with one-hot labels."""
    valid = labels != IGNORE
    probs = logits.softmax(1).movedim(1, -1)[valid]  # (N, K)
    targets = functional.one_hot(labels[valid], logits.shape[1]).float()
    dice = (2 * (probs * targets).sum(0) + smooth) / (probs.sum(0) + targets.sum(0) + smooth)
    return (1 - dice)[targets.sum(0) > 0].mean()


def test_dice_over_batch_and_over_images(logits, labels):
    labels = labels.where(labels != 3, 0)  # class 3 does not occur
    assert torch.allclose(Dice(over='batch')(logits, labels), _soft_dice(logits, labels, 1.0))
    images = torch.stack([_soft_dice(logits[i : i + 1], labels[i : i + 1], 1.0) for i in range(2)])
    same = all((labels[i].unique().numel() == labels[0].unique().numel()) for i in range(2))
    assert same  # else the mean over (image, class) pairs is not the mean of the images' means
    assert torch.allclose(Dice()(logits, labels), images.mean())


def test_absent_classes_count_when_asked(logits):
    labels = torch.zeros((2, 6, 7), dtype=torch.int64)
    assert Dice(absent=True)(logits, labels) > Dice()(logits, labels)


def test_perfect_predictions_have_no_loss(labels):
    logits = functional.one_hot(labels.where(labels != IGNORE, 0), 5).movedim(-1, 1) * 100.0
    for part in (CrossEntropy(), Dice(smooth=0), PixelFocal(), OhemCrossEntropy(min_kept=3)):
        assert part(logits, labels).item() == pytest.approx(0, abs=1e-6)


def _ohem_by_sorting(logits, labels, threshold, min_kept):
    """The reference: sort the probabilities of the labels, raise the threshold to keep enough."""
    valid = labels != IGNORE
    probs = logits.softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0][valid]
    ordered = probs.sort().values
    bound = max(ordered[min(min_kept * len(logits), len(ordered) - 1)].item(), threshold)
    hard = probs < bound
    return -probs[hard].log().sum(), hard.sum()


@pytest.mark.parametrize(('threshold', 'min_kept'), [(0.7, 5), (0.05, 8), (0.0, 20), (1.0, 1)])
def test_ohem_equals_sorting(logits, labels, threshold, min_kept):
    total, count = _ohem_by_sorting(logits, labels, threshold, min_kept)
    part = OhemCrossEntropy(threshold=threshold, min_kept=min_kept)
    assert torch.allclose(part(logits, labels), total / count, rtol=1e-5)
    everywhere = OhemCrossEntropy(threshold=threshold, min_kept=min_kept, average='all')
    assert torch.allclose(everywhere(logits, labels), total / labels.numel(), rtol=1e-5)


def test_ohem_keeps_all_when_there_are_few(logits, labels):
    part = OhemCrossEntropy(threshold=0.0, min_kept=100_000)
    assert torch.allclose(part(logits, labels), CrossEntropy()(logits, labels))


@pytest.mark.parametrize(
    'make',
    [
        lambda: CrossEntropy(average='mean'),
        lambda: CrossEntropy(label_smoothing=2),
        lambda: Dice(exponent=3),
        lambda: PixelFocal(gamma=-1),
        lambda: OhemCrossEntropy(threshold=7),
    ],
)
def test_wrong_arguments_are_errors_now(make):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.fix


def test_wrong_number_of_class_weights(logits, labels):
    with pytest.raises(ConfigError, match='every one of the 5 classes'):
        CrossEntropy(class_weights=(1, 1, 1))(logits, labels)


def _own_image(rank):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[1, 2:] = IGNORE  # the ranks do not have the same number of labels
    mine = logits[rank : rank + 1].requires_grad_()
    for part in (CrossEntropy(), PixelFocal(), Dice()):
        part(mine, labels[rank : rank + 1]).backward()
    return mine.grad.tolist()


def test_two_ranks_give_the_gradient_of_one_batch(run_ranks):
    grads = run_ranks(_own_image)
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[1, 2:] = IGNORE
    logits.requires_grad_()
    sum(part(logits, labels) for part in (CrossEntropy(), PixelFocal(), Dice())).backward()
    mean = torch.tensor([grads[0][0], grads[1][0]]) / 2  # distributed training averages over ranks
    assert torch.allclose(mean, logits.grad, rtol=1e-5, atol=1e-7)


def test_a_single_labelled_pixel_lets_all_classes_count():
    """With absent classes asked for, what is predicted of them at the one labelled pixel costs."""
    logits, labels = torch.zeros(1, 3, 1, 2), torch.tensor([[[1, IGNORE]]])
    loss = Dice(absent=True, smooth=0)(logits, labels)
    assert loss.item() == pytest.approx((1 + (1 - 2 / 3 / (1 / 3 + 1)) + 1) / 3, rel=1e-5)
    smooth = Dice(absent=True, smooth=0.1)(logits, labels)
    there, absent = 1 - (2 / 3 + 0.1) / (1 / 3 + 1 + 0.1), 1 - 0.1 / (1 / 3 + 0.1)
    assert smooth.item() == pytest.approx((there + 2 * absent) / 3, rel=1e-5)


def test_what_a_loss_is_divided_by():
    assert [share_of_count(torch.tensor(count)).item() for count in (0, 1, 7, 0.5)] == [1, 1, 7, 0.5]
    logits, labels = torch.randn(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64)
    half = CrossEntropy(class_weights=(0.5, 1))(logits, labels)
    assert torch.allclose(half, CrossEntropy()(logits, labels))  # half a loss of half a pixel


def test_defaults_are_those_of_the_sources():
    wanted = {  # mmsegmentation: ce, dice and ohem; RetinaNet: gamma
        CrossEntropy: dict(weight=1.0, class_weights=None, average='valid', label_smoothing=0.0),
        Dice: dict(weight=1.0, smooth=1.0, exponent=1, over='image', absent=False),
        PixelFocal: dict(weight=1.0, gamma=2.0, alpha=None, form='softmax'),
        OhemCrossEntropy: dict(weight=1.0, threshold=0.7, min_kept=100_000, class_weights=None, average='kept'),
    }
    assert {kind: dataclasses.asdict(kind()) for kind in wanted} == wanted


@pytest.mark.parametrize('kind', [CrossEntropy, OhemCrossEntropy])
def test_one_class_has_one_weight(kind):
    labels = torch.tensor([[[0, IGNORE]]])
    assert kind(class_weights=(2.0,))(torch.randn(1, 1, 1, 2), labels) == 0
    assert Dice()(torch.randn(1, 1, 1, 2), labels) == 0


def test_the_bound_of_ohem_is_the_largest_probability_where_all_but_one_pixel_are_kept():
    logits, labels = torch.randn(1, 3, 1, 5), torch.randint(0, 3, (1, 1, 5))
    nll = functional.cross_entropy(logits, labels, reduction='none').flatten().sort(descending=True).values
    assert torch.allclose(OhemCrossEntropy(threshold=0.0, min_kept=4)(logits, labels), nll[:4].mean())
