"""The evaluation crop shows the pixels that timm's shows."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.models import get_pretrained_cfg
from torchvision import tv_tensors

from vitdense.data.files.images import UnreadableImage
from vitdense.data.transforms import evaluation_crop as crops
from vitdense.data.transforms.common import ResizeShortSide
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.errors import ConfigError
from vitdense.types import Meta, Sample, Target

NAMES = ['vit_tiny_patch16_224.augreg_in21k_ft_in1k', 'deit3_small_patch16_384.fb_in1k', 'vit_small_patch16_dinov3']


def image(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] / 9
    waves = np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], axis=2)
    return (127 + 120 * waves).astype(np.uint8)


def cut(array: np.ndarray, crop: EvaluationCrop) -> torch.Tensor:
    return crop(Sample(tv_tensors.Image(torch.from_numpy(array).permute(2, 0, 1)), Target(), Meta(0))).img


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(500, 375), (160, 213), (224, 224)])
def test_it_is_that_of_timm(name, size):
    config = timm.data.resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    theirs = timm.data.create_transform(**config | dict(mean=(0,) * 3, std=(1,) * 3))
    array = image(*size)
    ours = cut(array, EvaluationCrop(checkpoint=name))
    difference = (ours.float() - theirs(Image.fromarray(array)) * 255).abs()
    assert difference.max() <= 2 and difference.mean() < 0.2  # Pillow and torchvision round differently


def test_arguments_override_the_crop_of_the_checkpoint():
    crop = EvaluationCrop(checkpoint=NAMES[0], size=160, crop_pct=1.0)
    assert crop.crop == (160, 1.0, 'bicubic', False)
    assert cut(image(100, 300), crop).shape == (3, 160, 160)
    assert EvaluationCrop().crop == (224, 0.875, 'bicubic', False)


def test_the_middle_is_cut_out():
    array = np.zeros((100, 200, 3), np.uint8)
    array[:, 60:140] = 255
    assert (cut(array, EvaluationCrop(size=80, crop_pct=1.0, interpolation='bilinear'))[..., 10:70] == 255).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny_patch16_224"):
        EvaluationCrop(checkpoint='vit_tiny_patch16_225')
    for wrong in (dict(crop_pct=1.1), dict(crop_pct=0), dict(size=0), dict(crop_pct=1e-308), dict(size=2**15)):
        with pytest.raises(ConfigError, match='is no crop'):
            EvaluationCrop(**wrong)
    assert EvaluationCrop(size=1, crop_pct=1.0).crop == (1, 1.0, 'bicubic', False)
    with pytest.raises(ConfigError, match='is no crop'):
        EvaluationCrop(interpolation='nearest')


@pytest.mark.parametrize('size', [(1, 20000), (20000, 1), (2, 4001), (3, 30000)])
def test_a_narrow_image_is_cut_before_it_is_resized(size, monkeypatch):
    """1 x 20000 pixels would become 256 x 5,120,000."""
    crop, recorded = EvaluationCrop(), []
    steps = crop._steps
    monkeypatch.setattr(crop, '_steps', lambda sample: recorded.append(sample.img.shape) or steps(sample))
    assert cut(image(*size), crop).shape == (3, 224, 224)
    assert max(recorded[0][1:]) <= 400


@pytest.mark.parametrize('size', [(1, 120), (121, 2), (3, 200), (7, 300), (300, 4001), (250, 9000)])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_the_cut_shows_what_the_whole_would_show(size, interpolation, monkeypatch):
    crop, array = EvaluationCrop(size=32, interpolation=interpolation), image(*size)
    whole = cut(array, crop)
    monkeypatch.setattr(crops, 'LARGEST', 0)
    difference = (cut(array, crop).int() - whole.int()).abs()
    assert difference.max() <= 4 and difference.float().mean() < 1


def test_other_resizes_refuse_what_would_fill_the_memory():
    narrow = Sample(tv_tensors.Image(torch.zeros(3, 1, 20000, dtype=torch.uint8)), Target(), Meta(0, path='a/b.png'))
    with pytest.raises(UnreadableImage, match='b.png: 20000 x 1 pixels would become 10240000 x 512'):
        ResizeShortSide(size=512)(narrow)
    assert ResizeShortSide(size=512, max_size=1024)(narrow).img.shape == (3, 1, 1024)


def recorded_by_the_resize(crop: EvaluationCrop, height: int, width: int) -> tuple[int, ...]:
    recorded = []
    crop._steps = lambda sample: recorded.append(tuple(sample.img.shape[1:])) or sample
    cut(np.zeros((height, width, 3), np.uint8), crop)
    return recorded[0]


def test_only_what_would_be_too_large_is_cut():
    """A short side of 256: 1 x 512 pixels become 2 ** 25."""
    for size in ((1, 512), (2, 1024), (512, 1), (1024, 2)):
        assert recorded_by_the_resize(EvaluationCrop(), *size) == size
    assert (
        recorded_by_the_resize(EvaluationCrop(), 1, 513)[1] < 50
        and recorded_by_the_resize(EvaluationCrop(), 1025, 2)[0] < 50
    )
    squashed = EvaluationCrop()
    squashed.crop = squashed.crop._replace(squash=True)
    assert recorded_by_the_resize(squashed, 1, 513) == (1, 513)


def test_how_much_is_cut(monkeypatch):
    monkeypatch.setattr(crops, 'LARGEST', 0)
    # 1 pixel becomes 256: 224 are seen, a margin of 4 on either side, and an even number is left over
    assert recorded_by_the_resize(EvaluationCrop(), 1, 20000) == (1, 10) and recorded_by_the_resize(
        EvaluationCrop(), 1, 137
    ) == (1, 137)
    assert recorded_by_the_resize(EvaluationCrop(), 1, 138) == (1, 10)
    # 7 become 36: ceil(32 * 7 / 36) = 7 and 2 * 4; of 16, 18, ... the first whose side becomes a whole number is 28
    assert recorded_by_the_resize(EvaluationCrop(size=32), 7, 900) == (7, 28)
    # 250 become 36: ceil(222.2) = 223 and 2 * ceil(27.8); of 280, 282, ... 292 * 36 = 42 * 250 + 12 is the nearest
    assert recorded_by_the_resize(EvaluationCrop(size=32), 250, 9000) == (250, 292)


@pytest.mark.parametrize(
    ('side', 'needed', 'wanted'), [(5000, 900, 1000), (6000, 900, 900), (5001, 900, 1001), (6001, 900, 901)]
)
def test_a_cut_and_the_whole_are_even_or_odd_together(side, needed, wanted):
    """2000 become 2: the side becomes 5 or 6, the cut 1 (from 1000 on) or 0."""
    assert crops._cut_side(side, needed, 2, 2000) == wanted


def test_sixty_four_sides_are_tried():
    assert crops._cut_side(5000, 874, 1, 1000) == 1000 and crops._cut_side(5000, 872, 1, 1000) == 872
