"""Mixup, CutMix and erasing: what is mixed with what, what stays, and where it happens."""

import inspect

import pytest
import torch

from vitdense.errors import ConfigError
from vitdense.model import Preprocessor
from vitdense.ops.mixing import ImageMixing, as_shares
from vitdense.types import Batch, Meta, Target


def batch_of(count: int = 4, size=(16, 16), pixels=(16, 16)) -> Batch:
    imgs = torch.zeros(count, 3, *pixels)
    for row in range(count):
        imgs[row, :, : size[0], : size[1]] = row + 1.0  # image i is all i + 1
    targets = [Target(image_label=torch.tensor(row)) for row in range(count)]
    return Batch(imgs, targets, [Meta(row, size=size) for row in range(count)])


def labels_of(batch: Batch) -> torch.Tensor:
    return torch.stack([target.image_label for target in batch.targets])


def test_mixup_adds_images_and_labels_in_the_same_shares():
    mixed = ImageMixing(4, mixup=0.8, cutmix=0.0)(batch_of())
    labels = labels_of(mixed)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed.imgs[:, 0, 0, 0], labels @ torch.arange(1.0, 5.0))
    assert (mixed.imgs == mixed.imgs[:, :1, :1, :1]).all() and (labels > 0).sum() > 4


def test_cutmix_labels_are_the_shares_of_the_area():
    mixed = ImageMixing(4, mixup=0.0, cutmix=1.0)(batch_of())
    for row, label in enumerate(labels_of(mixed)):
        areas = [(mixed.imgs[row, 0] == value).float().mean() for value in (1.0, 2.0, 3.0, 4.0)]
        torch.testing.assert_close(label, torch.stack(areas))


def test_both_are_drawn_and_the_same_seed_draws_the_same():
    mixing = ImageMixing(4)
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        first = mixing(batch_of())
        torch.manual_seed(seed)
        assert torch.equal(mixing(batch_of()).imgs, first.imgs)
        kinds.add(bool((first.imgs == first.imgs[:, :1, :1, :1]).all()))
    assert kinds == {True, False}


def test_probability_zero_leaves_images_and_numbers():
    mixed = ImageMixing(4, probability=0.0)(batch_of())
    assert torch.equal(mixed.imgs, batch_of().imgs)
    assert labels_of(mixed).tolist() == [0, 1, 2, 3]
    alone = ImageMixing(4)(batch_of(1))
    assert labels_of(alone).tolist() == [0] and torch.equal(alone.imgs, batch_of(1).imgs)


def test_a_probability_is_above_what_is_drawn(monkeypatch):
    monkeypatch.setattr(torch, 'rand', lambda size: torch.tensor(0.0))
    assert labels_of(ImageMixing(4, probability=0.0)(batch_of())).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(('share', 'mixup'), [(0.0, True), (1.0, False)])
def test_one_of_both_mixtures_may_have_the_whole_share(share, mixup):
    mixing = ImageMixing(4, cutmix_share=share)
    for seed in range(12):
        torch.manual_seed(seed)
        mixed = mixing(batch_of())
        assert mixup == bool(((mixed.imgs % 1).flatten(1).amax(1) > 0).any())  # only mixup adds up


def test_defaults_are_those_of_deit_and_mae():
    parameters = inspect.signature(ImageMixing).parameters.values()
    actual = {each.name: each.default for each in parameters if each.default is not each.empty}
    assert actual == dict(mixup=0.8, cutmix=1.0, probability=1.0, cutmix_share=0.5, erase=0.0)
    erasing = ImageMixing(4, erase=0.25)._erase  # Zhong et al. 2017: 2 to 33 % of the area, sides up to 1 : 0.3
    assert (erasing.p, erasing.scale, erasing.ratio) == (0.25, (0.02, 1 / 3), (0.3, 1 / 0.3))


def test_only_rows_with_nothing_but_an_image_label_are_mixed():
    batch = batch_of()
    boxes = Target(image_label=torch.tensor(2), boxes=torch.zeros(0, 4))  # an empty field is a known field
    batch = batch._replace(targets=[batch.targets[0], Target(), boxes, batch.targets[3]])
    mixed = ImageMixing(4, cutmix=0.0)(batch)
    assert torch.equal(mixed.imgs[1:3], batch.imgs[1:3])
    assert mixed.targets[1] == Target() and mixed.targets[2] is boxes
    assert mixed.targets[0].image_label[[1, 2]].tolist() == [0, 0]  # 0 is mixed with 3
    assert 1 < mixed.imgs[0].max() < 4


def test_padding_stays_zero_and_only_equal_sizes_are_mixed():
    wide = batch_of(2, size=(8, 16))
    high = batch_of(2, size=(16, 8))
    batch = Batch(torch.cat([wide.imgs, high.imgs]), wide.targets + high.targets, wide.metas + high.metas)
    mixed = ImageMixing(4, erase=1.0)(batch)
    assert not mixed.imgs[:2, :, 8:].any() and not mixed.imgs[2:, :, :, 8:].any()
    labels = labels_of(mixed)
    torch.testing.assert_close(labels[:, :2].sum(1), torch.ones(4))


def test_erasing_draws_noise_into_a_rectangle_of_each_image():
    erased = ImageMixing(4, mixup=0.0, cutmix=0.0, erase=1.0)(batch_of(size=(64, 64), pixels=(64, 64)))
    assert labels_of(erased).tolist() == [0, 1, 2, 3]
    changed = (erased.imgs != batch_of(size=(64, 64), pixels=(64, 64)).imgs).any(1)
    assert all(0.01 < row.float().mean() < 0.4 for row in changed)
    noise = erased.imgs[changed[:, None].expand_as(erased.imgs)]
    assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1


def test_the_preprocessor_mixes_in_training_only():
    batch = batch_of()._replace(imgs=torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    preprocessor = Preprocessor((0.5,) * 3, (0.5,) * 3, divisor=16, augment=ImageMixing(4, cutmix=0.0))
    plain = preprocessor(batch, False)
    mixed = preprocessor(batch, True)
    assert plain.targets[0].image_label.ndim == 0
    torch.testing.assert_close(mixed.imgs, torch.einsum('ij,jchw->ichw', labels_of(mixed), plain.imgs))


def test_shares_of_numbers_and_of_shares():
    labels = [torch.tensor(1), torch.tensor([0.5, 0.5, 0.0])]
    assert as_shares(labels, 3).tolist() == [[0, 1, 0], [0.5, 0.5, 0]]


@pytest.mark.parametrize('name', ['probability', 'cutmix_share', 'erase'])
def test_shares_lie_between_zero_and_one(name):
    for value in (0.0, 0.5, 1.0):
        ImageMixing(4, **{name: value})
    for value in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=name):
            ImageMixing(4, **{name: value})


@pytest.mark.parametrize('wrong', [dict(mixup=-1.0), dict(erase=1.5), dict(probability=-0.1)])
def test_values_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=f'{next(iter(wrong))} ='):
        ImageMixing(4, **wrong)
