"""Transforms in numbers that were worked out by hand: defaults, bounds of arguments, windows, sizes and colours."""

import inspect

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from tests.data.transforms.test_common import assert_in_agreement, one_square
from vitdense.data.files.images import UnreadableImage
from vitdense.data.transforms import common, geometry
from vitdense.data.transforms.common import (
    ColorJitter,
    Pad,
    PhotometricDistortion,
    Pipeline,
    RandomCrop,
    RandomFlip,
    RandomResize,
    ResizeShortSide,
    ResizeTo,
)
from vitdense.errors import ConfigError
from vitdense.types import IGNORE, Meta, Sample, Target


def test_only_the_sides_that_are_too_short_are_padded():
    sample = one_square(40, 60)
    for size, wanted in (((30, 70), (40, 70)), ((50, 30), (50, 60)), ((41, 60), (41, 60)), ((40, 61), (40, 61))):
        assert Pad(size=size)(sample).img.shape == (3, *wanted)
        assert_in_agreement(geometry.pad(sample, size))
        assert geometry.pad(sample, size).img.shape == (3, *wanted)
    for size in ((40, 60), (40, 50), (30, 60), (30, 50)):
        assert Pad(size=size)(sample) is sample and geometry.pad(sample, size) is sample
    assert Pad(size=(60, 50))(one_square(50, 50)).img.shape == (3, 60, 50)
    assert Pipeline([RandomFlip(), Pad(size=64)])(sample).img.shape == (3, 64, 64)
    with pytest.raises(ConfigError, match='RandomFlip follows Pad'):
        Pipeline([Pad(size=64), RandomFlip()])


DEFAULTS = [
    (RandomResize, dict(scale=(2048, 512), ratio=(0.5, 2.0), antialias=True)),  # mmsegmentation, ADE20K
    (RandomCrop, dict(max_category_fraction=0.75, require_labels=False, fill=0)),
    (Pad, dict(fill=0, after_normalisation=False)),
    (RandomFlip, dict(probability=0.5)),
    (PhotometricDistortion, dict(brightness=32, contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=18)),  # mmsegmentation
    (ColorJitter, dict(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=18 / 360)),  # tue-mps/eomt
    (ResizeShortSide, dict(max_size=None, divisor=1, round_up=False, antialias=True)),
    (ResizeTo, dict(antialias=True)),
]


@pytest.mark.parametrize(('kind', 'wanted'), DEFAULTS)
def test_defaults_are_those_of_the_sources(kind, wanted):
    parameters = inspect.signature(kind).parameters.values()
    assert {each.name: each.default for each in parameters if each.default is not each.empty} == wanted


@pytest.mark.parametrize(
    ('kind', 'name', 'low', 'high', 'others'),
    [
        (RandomCrop, 'max_category_fraction', 0, 1, dict(size=8)),
        (RandomCrop, 'fill', 0, 255, dict(size=8)),
        (Pad, 'fill', 0, 255, dict(size=8)),
        (RandomFlip, 'probability', 0, 1, {}),
        (PhotometricDistortion, 'brightness', 0, 255, {}),
        (PhotometricDistortion, 'hue', 0, 90, {}),
        (ColorJitter, 'brightness', 0, 1, {}),
        (ColorJitter, 'contrast', 0, 1, {}),
        (ColorJitter, 'saturation', 0, 1, {}),
        (ColorJitter, 'hue', 0, 0.5, {}),
        (ResizeShortSide, 'size', 1, 65535, {}),
        (ResizeShortSide, 'max_size', 512, 1_000_000, dict(size=512)),
        (ResizeShortSide, 'divisor', 1, 512, dict(size=512)),
    ],
)
def test_numbers_up_to_their_bounds_are_accepted(kind, name, low, high, others):
    for value in (low, high):
        kind(**{name: value}, **others)
    for value in (low - 0.25, high + 0.25):
        with pytest.raises(ConfigError, match=name):
            kind(**{name: value}, **others)


def test_windows_lie_inside_and_reach_every_place():
    rendered = [geometry.draw_window((10, 7), (10, 7), (4, 3)) for _ in range(300)]
    assert {(height, width, *shape) for (_, _, height, width), shape in rendered} == {(4, 3, 4, 3)}
    assert {top for (top, *_), _ in rendered} == set(range(7)) and {left for (_, left, *_), _ in rendered} == set(
        range(5)
    )
    for _ in range(300):  # one pixel of an image that becomes ten times as large
        (top, left, height, width), shape = geometry.draw_window((4, 4), (40, 40), (1, 1))
        assert top >= 0 and height >= 1 and top + height <= 4 and left >= 0 and width >= 1 and left + width <= 4
        assert shape == (1, 1)
    window, shape = geometry.draw_window((100, 50), (20, 10), (30, 30))
    assert window == (0, 0, 100, 50) and shape == (20, 10)


def test_sizes_that_fit():
    assert geometry.fit((40, 60), 100, 50) == (50, 75) and geometry.fit((60, 40), 100, 50) == (75, 50)
    assert geometry.fit((20, 200), 200, 50) == (20, 200)
    assert geometry.fit((3, 7), float('inf'), 2) == (2, 5) and geometry.fit((7, 3), float('inf'), 2) == (5, 2)
    assert geometry.fit((1, 1000), 100, 50) == (1, 100) and geometry.fit((1000, 1), 100, 50) == (100, 1)


def test_a_window_is_sampled_ten_times_at_most(monkeypatch):
    samples = []
    monkeypatch.setattr(geometry, 'draw_window', lambda *sizes: samples.append(sizes) or ((0, 0, 8, 8), (8, 8)))

    def count(semantic, **options) -> int:
        samples.clear()
        target = Target(semantic=None if semantic is None else tv_tensors.Mask(semantic))
        RandomCrop(size=8, **options)(
            Sample(tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8)), target, Meta(0))
        )
        return len(samples)

    one_class, unlabelled = (torch.full((8, 8), value, dtype=torch.uint8) for value in (3, IGNORE))
    assert (
        count(one_class) == count(unlabelled) == count(unlabelled, max_category_fraction=1.0, require_labels=True) == 10
    )
    assert (
        count(None) == count(one_class, max_category_fraction=1.0) == count(unlabelled, max_category_fraction=1.0) == 1
    )
    assert count(one_class, max_category_fraction=1.0, require_labels=True) == 1


def test_a_window_of_which_a_class_has_its_greatest_share_is_not_taken():
    labels = torch.tensor([[0, 0], [0, 1]], dtype=torch.uint8).repeat_interleave(2, 0).repeat_interleave(2, 1)
    window = (0, 0, 4, 4)  # three quarters of class 0
    assert not RandomCrop(size=4, max_category_fraction=0.75)._accepts(labels, window)
    assert RandomCrop(size=4, max_category_fraction=0.76)._accepts(labels, window)
    assert not RandomCrop(size=2, max_category_fraction=0.75)._accepts(labels.roll((3, 3), (0, 1)), (1, 1, 3, 3))
    stripes = (torch.arange(9, dtype=torch.uint8) % 2).expand(9, 9).contiguous()  # looked at in every second place
    for semantic in (stripes, stripes.T.contiguous()):
        assert not RandomCrop(size=9)._accepts(semantic, (0, 0, 9, 9))


def test_a_resized_crop_resizes_only_what_it_has_cut(monkeypatch):
    resize, sizes = geometry.resize, []
    monkeypatch.setattr(
        geometry, 'resize', lambda sample, size, **more: sizes.append(size) or resize(sample, size, **more)
    )
    steps = [RandomFlip(probability=0), RandomResize(scale=(900, 600), ratio=(1, 1)), RandomCrop(size=32)]
    assert Pipeline(steps)(one_square()).img.shape == (3, 32, 32) and sizes == [(32, 32)]
    assert Pipeline([steps[1], RandomFlip()])(one_square()).img.shape == (3, 600, 900)
    torch.manual_seed(0)
    averaged = RandomCrop(size=8, max_category_fraction=1.0).cut(one_square(), (10, 15))
    torch.manual_seed(0)
    again = RandomCrop(size=8, max_category_fraction=1.0).cut(one_square(), (10, 15), antialias=True)
    torch.manual_seed(0)
    sampled = RandomCrop(size=8, max_category_fraction=1.0).cut(one_square(), (10, 15), antialias=False)
    assert torch.equal(averaged.img, again.img) and not torch.equal(averaged.img, sampled.img)


@pytest.mark.parametrize('contrast_first', [True, False])
def test_contrast_comes_before_or_after_the_colours(contrast_first, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    numbers = iter([0.9, 0.0, 0.0, 0.0 if contrast_first else 0.9, 0.0, 0.0, 0.9])  # both factors, and no more
    monkeypatch.setattr(torch, 'rand', lambda size: torch.tensor(next(numbers)))
    sample = Sample(geometry.as_image(noise), Target(), Meta(0))
    got = geometry.as_array(PhotometricDistortion(contrast=(2, 2), saturation=(0.5, 0.5))(sample).img)

    def pale(array: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(array, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = np.floor(hsv[..., 1] * 0.5 + 0.5)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    def doubled(array: np.ndarray) -> np.ndarray:
        return (array * 2.0).clip(0, 255).astype(np.uint8)

    wanted, other = pale(doubled(noise)), doubled(pale(noise))
    if not contrast_first:
        wanted, other = other, wanted
    assert (got == wanted).all() and (got != other).any()


def test_the_colour_circle_is_closed():
    """20 degrees from red towards yellow there is a third of the green, 255 * 20 / 60; towards magenta, of the blue."""
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    assert common._recolor(red, 1.0, 10)[0, 0].tolist() == [255, 85, 0]
    assert common._recolor(red, 1.0, -10)[0, 0].tolist() == [255, 0, 85]
    assert common._recolor(red, 2.0, 0)[0, 0].tolist() == [255, 0, 0]  # no more than all of it
    hues = []
    for number in (0.0, 0.999):
        samples = iter([0.9, 0.9, 0.9, 0.9, 0.0, number])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, 'rand', lambda size: torch.tensor(next(samples)))  # noqa: B023
            img = PhotometricDistortion(hue=10)(Sample(geometry.as_image(red), Target(), Meta(0))).img
        hues.append(img.flatten().tolist())
    assert hues == [[255, 0, 85], [255, 85, 0]]


def test_an_image_that_would_grow_too_large_is_named(monkeypatch):
    monkeypatch.setattr(geometry, 'MAX_PIXELS', 1000)
    sample = one_square(20, 30, (10, 8, 20, 12))
    assert geometry.resize(sample, (25, 40)).img.shape == (3, 25, 40)
    with pytest.raises(UnreadableImage, match='30 x 20 pixels would become 40 x 26'):
        geometry.resize(sample, (26, 40))
    large = one_square(40, 60)
    assert geometry.resize(large, (48, 50)).img.shape == (3, 48, 50)  # no larger than it is
    with pytest.raises(UnreadableImage):
        geometry.resize(large, (49, 50))


def test_the_whole_image_is_not_cut_and_its_memory_not_copied():
    sample = one_square()
    assert geometry.crop(sample, 0, 0, 40, 60) is sample and geometry.resize(sample, (40, 60)) is sample
    channels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    rows = geometry.as_array(channels)
    assert rows.flags.c_contiguous and not np.shares_memory(rows, channels.numpy())
    image = geometry.as_image(rows)
    assert np.shares_memory(geometry.as_array(image), rows)
    assert np.shares_memory(geometry.as_array(image[:, 1:4, 2:6]), rows)  # a window of it is not copied either
