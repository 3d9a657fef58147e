"""Geometry moves image, boxes, masks and labels together; random numbers come from torch's generator alone."""

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from vitdense.data.transforms import geometry
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


def one_square(height: int = 40, width: int = 60, box=(10, 8, 30, 20)) -> Sample:
    """A white square on black, described by a box, a mask and a semantic map."""
    x0, y0, x1, y1 = box
    semantic = torch.zeros(height, width, dtype=torch.uint8)
    semantic[y0:y1, x0:x1] = 1
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([box], dtype=torch.float32), format='XYXY', canvas_size=(height, width)
    )
    target = Target(
        boxes=boxes,
        labels=torch.tensor([0]),
        masks=tv_tensors.Mask(semantic[None] == 1),
        semantic=tv_tensors.Mask(semantic),
        area=torch.tensor([240.0]),
    )
    img = tv_tensors.Image((semantic * 255).expand(3, -1, -1).contiguous())
    return Sample(img, target, Meta(0, orig_size=(height, width), size=(height, width)))


def assert_in_agreement(sample: Sample) -> None:
    """The box bounds the mask, the mask is the label, and the image is white exactly there."""
    target = sample.target
    assert isinstance(target.boxes, tv_tensors.BoundingBoxes) and isinstance(target.masks, tv_tensors.Mask)
    assert isinstance(target.semantic, tv_tensors.Mask) and isinstance(sample.img, tv_tensors.Image)
    assert tuple(target.boxes.canvas_size) == tuple(sample.img.shape[-2:]) == tuple(target.semantic.shape)
    assert ((target.semantic == 1) == target.masks[0]).all()
    rows, columns = target.masks[0].nonzero(as_tuple=True)
    recorded = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (target.boxes[0] - torch.tensor(recorded)).abs().max() <= 1
    assert ((sample.img[0] > 127) != target.masks[0]).float().mean() < 0.01


def test_each_move_keeps_everything_together():
    sample = one_square()
    for moved in (
        geometry.resize(sample, (80, 90)),
        geometry.resize(sample, (20, 30)),
        geometry.crop(sample, 5, 15, 30, 40),
        geometry.pad(sample, (50, 70)),
        geometry.flip(sample),
    ):
        assert_in_agreement(moved)


def test_two_flips_are_the_identity():
    sample = one_square()
    twice = geometry.flip(geometry.flip(sample))
    assert (twice.img == sample.img).all() and (twice.target.boxes == sample.target.boxes).all()


def test_objects_outside_the_window_leave_with_all_their_fields():
    cropped = geometry.crop(one_square(), 20, 0, 20, 60)
    assert [len(cropped.target.boxes), len(cropped.target.labels), len(cropped.target.masks)] == [0, 0, 0]
    assert len(cropped.target.area) == 0 and cropped.target.iscrowd is None
    assert isinstance(cropped.target.boxes, tv_tensors.BoundingBoxes)


def test_labels_resize_by_half_pixel_centres():
    """Each label of a doubled map is the label under it; halving keeps columns 1, 3, 5 (centres 1.0, 3.0, ...)."""
    labels = tv_tensors.Mask(torch.arange(6, dtype=torch.uint8)[None].repeat(2, 1))
    sample = Sample(tv_tensors.Image(torch.zeros(3, 2, 6, dtype=torch.uint8)), Target(semantic=labels), Meta(0))
    assert geometry.resize(sample, (2, 12)).target.semantic[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert geometry.resize(sample, (1, 3)).target.semantic[0].tolist() == [1, 3, 5]
    reference = torch.nn.functional.interpolate(labels[None, None].float(), size=(5, 17), mode='nearest-exact')
    assert (geometry.resize(sample, (5, 17)).target.semantic == reference[0, 0]).all()


def test_images_resize_as_torchvision_resizes_them():
    img = torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8)
    for size in ((74, 106), (50, 60), (20, 30), (50, 20), (30, 60), (37, 53)):
        expected = functional.resize(img, list(size), antialias=True)
        assert (geometry.resize_image(img, size).int() - expected.int()).abs().max() <= 1
    for size in ((37, 106), (74, 53)):  # nothing to average: OpenCV's own numbers
        wanted = cv2.resize(geometry.as_array(img), size[::-1], interpolation=cv2.INTER_LINEAR)
        assert (geometry.as_array(geometry.resize_image(img, size)) == wanted).all()
    sample = geometry.resize(Sample(tv_tensors.Image(img), Target(), Meta(0)), (20, 30))
    assert torch.equal(sample.img, geometry.resize_image(img, (20, 30), antialias=True))


def test_a_resized_crop_is_a_crop_of_the_resized():
    """Fused or one after the other: the same draw gives the same place, up to a fraction of a source pixel."""
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(200), indexing='ij')
    img = torch.stack([rows * 2, columns, columns]).to(torch.uint8)
    semantic = tv_tensors.Mask((columns // 40 + rows // 40 * 5).to(torch.uint8))
    sample = Sample(tv_tensors.Image(img), Target(semantic=semantic), Meta(0))
    steps = [RandomResize(scale=(400, 160), ratio=(0.3, 2)), RandomCrop(size=64)]
    for seed in range(30):
        torch.manual_seed(seed)
        fused = Pipeline(steps)(sample)
        torch.manual_seed(seed)
        separate = steps[1](steps[0](sample))
        if fused.target.semantic.shape == separate.target.semantic.shape and (fused.img != 0).all():
            assert (fused.img.int() - separate.img.int()).abs().float().mean() < 3
            assert (fused.target.semantic != separate.target.semantic).float().mean() < 0.05


def test_padding_is_black_and_ignored():
    padded = geometry.pad(one_square(), (44, 64))
    assert (padded.img[:, 40:] == 0).all() and (padded.target.semantic[:, 60:] == IGNORE).all()
    assert not padded.target.masks[:, 40:].any()
    gray = geometry.pad(one_square(), (44, 64), fill=100)
    assert (gray.img[:, 40:] == 100).all() and (gray.img[:, :, 60:] == 100).all()
    assert (gray.img[:, :40, :60] == one_square().img).all()


def test_random_resize_fits_inside_the_scaled_frame():
    resize = RandomResize(scale=(200, 50), ratio=(0.5, 2.0))
    shorts = [min(resize(one_square(40, 60)).img.shape[-2:]) for _ in range(200)]
    assert min(shorts) < 30 and max(shorts) > 90 and all(25 <= side <= 100 for side in shorts)
    long = RandomResize(scale=(200, 50), ratio=(1, 1))(one_square(20, 200, (10, 8, 30, 18)))
    assert long.img.shape == (3, 20, 200)  # the long side binds: min(200 / 200, 50 / 20) = 1
    for scale, size in (((400, 50), (100, 150)), ((50, 400), (100, 150)), ((60, 50), (80, 120))):
        assert RandomResize(scale=scale, ratio=(2, 2))(one_square(40, 60)).img.shape == (3, *size)


def test_the_category_cap_draws_again():
    """Left half class 0, right half class 1: most windows are of one class, and almost none of those come out."""
    semantic = torch.zeros(20, 200, dtype=torch.uint8)
    semantic[:, 100:] = 1
    sample = Sample(
        tv_tensors.Image(torch.zeros(3, 20, 200, dtype=torch.uint8)),
        Target(semantic=tv_tensors.Mask(semantic)),
        Meta(0),
    )

    def mixed(crop: RandomCrop) -> int:
        return sum(len(crop(sample).target.semantic.unique()) > 1 for _ in range(200))

    assert mixed(RandomCrop(size=(20, 80), max_category_fraction=1.0)) < 160
    assert mixed(RandomCrop(size=(20, 80), max_category_fraction=0.75)) > 190


def test_windows_without_labels_are_sampled_again():
    semantic = torch.full((20, 200), IGNORE, dtype=torch.uint8)
    semantic[:, :40] = 0
    sample = Sample(
        tv_tensors.Image(torch.zeros(3, 20, 200, dtype=torch.uint8)),
        Target(semantic=tv_tensors.Mask(semantic)),
        Meta(0),
    )
    crop = RandomCrop(size=(20, 60), max_category_fraction=1.0, require_labels=True)
    labelled = sum(bool((crop(sample).target.semantic == 0).any()) for _ in range(100))
    assert labelled > 90  # one draw alone: 29 %
    any_window = RandomCrop(size=(20, 60), max_category_fraction=1.0)
    assert sum(bool((any_window(sample).target.semantic == 0).any()) for _ in range(100)) < 60


def test_small_images_are_padded_to_the_crop():
    cropped = Pipeline([RandomCrop(size=(50, 30))])(one_square())
    assert cropped.img.shape == (3, 50, 30) and cropped.meta.size == (50, 30) and cropped.meta.orig_size == (40, 60)
    assert (cropped.target.semantic[40:] == IGNORE).all()


def test_photometric_distortion_matches_the_formulas():
    """Brightness adds, contrast multiplies, saturation and hue act in HSV; labels do not change."""
    sample = one_square()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    sample = sample._replace(img=geometry.as_image(noise))
    off = {'brightness': 0, 'contrast': (1, 1), 'saturation': (1, 1), 'hue': 0}
    assert all((PhotometricDistortion(**off)(sample).img == sample.img).all() for _ in range(5))

    def outcomes(**options) -> list[np.ndarray]:
        change = PhotometricDistortion(**(off | options))
        results = [geometry.as_array(change(sample).img) for _ in range(30)]
        changed = [result for result in results if (result != noise).any()]
        assert 5 <= len(changed) <= 25  # probability one half
        return changed

    for result in outcomes(contrast=(0.5, 0.5)):
        assert np.abs(result - noise * 0.5).max() <= 0.5
    for result in outcomes(contrast=(2, 2)):
        assert (result == (noise * 2.0).clip(0, 255)).all()
    for result in outcomes(saturation=(0, 0)):
        assert (result == noise.max(2, keepdims=True)).all()  # no saturation: gray of the same value
    shifts = []
    for result in outcomes(brightness=32):
        shifts.append(np.median(result.astype(int) - noise))
        assert np.abs(result - (noise + shifts[-1]).clip(0, 255)).max() <= 1
    assert min(shifts) < 0 < max(shifts)
    for result in outcomes(hue=18):
        hsv = [cv2.cvtColor(array, cv2.COLOR_RGB2HSV).astype(int) for array in (result, noise)]
        assert np.abs(hsv[0][..., 2] - hsv[1][..., 2]).max() <= 1


def test_the_input_of_a_transform_is_never_changed():
    sample = one_square()
    before = sample.img.clone(), sample.target.semantic.clone()
    Pipeline([RandomResize(scale=(90, 60)), RandomCrop(size=32), RandomFlip(probability=1), PhotometricDistortion()])(
        sample
    )
    assert (sample.img == before[0]).all() and (sample.target.semantic == before[1]).all()


def test_evaluation_sizes():
    assert ResizeShortSide(size=20)(one_square()).img.shape == (3, 20, 30)
    assert ResizeShortSide(size=20, max_size=24)(one_square()).img.shape == (3, 16, 24)
    assert ResizeShortSide(size=20, divisor=16)(one_square()).img.shape == (3, 16, 32)
    assert ResizeTo(size=(7, 9))(one_square()).img.shape == (3, 7, 9)
    narrow = ResizeShortSide(size=20, max_size=40, divisor=16)(one_square(10, 100, (10, 2, 30, 8)))
    assert narrow.img.shape == (3, 16, 32)  # 4 x 40: at least one cell, and 2.5 cells round to 2


def test_torchvisions_own_transforms_fit_into_a_pipeline():
    sample = Pipeline([v2.RandomHorizontalFlip(p=1.0), v2.RandomGrayscale(p=1.0)])(one_square())
    assert_in_agreement(sample)
    assert isinstance(sample, Sample) and sample.meta.size == (40, 60)


def test_same_seed_same_augmentation():
    pipeline = Pipeline([RandomResize(scale=(90, 60)), RandomCrop(size=32), RandomFlip(), PhotometricDistortion()])
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(pipeline(one_square()))
    assert (results[0].img == results[1].img).all()
    assert (results[0].img != results[2].img).any()


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        (RandomResize, {'scale': 512}),
        (RandomResize, {'scale': (512.5, 256)}),
        (RandomResize, {'ratio': (2.0, 0.5)}),
        (RandomCrop, {'size': 0}),
        (RandomCrop, {'size': 32.5}),
        (RandomCrop, {'size': 32, 'max_category_fraction': 75}),
        (RandomFlip, {'probability': 2}),
        (PhotometricDistortion, {'contrast': 0.5}),
        (ResizeShortSide, {'size': 512, 'max_size': 100}),
        (Pipeline, {'transforms': [3]}),
    ],
)
def test_wrong_arguments_are_errors_now(kind, options):
    with pytest.raises(ConfigError) as caught:
        kind(**options)
    assert caught.value.where and caught.value.fix


def test_colour_jitter_is_that_of_torchvision(monkeypatch):
    """EoMT and benchmark-vfm-ss, datasets/transforms.py: every change by torchvision, each by a coin toss."""
    sample = one_square()
    img = torch.randint(0, 256, sample.img.shape, dtype=torch.uint8)
    sample = sample._replace(img=tv_tensors.Image(img))
    for order in (0.0, 1.0):  # the toss that puts contrast first, or last
        numbers = iter([0.0, 0.9, order, *[0.0, 0.2, 0.0, 0.7, 0.0, 0.4]])
        monkeypatch.setattr(torch, 'rand', lambda size: torch.tensor(next(numbers)))  # noqa: B023
        got = ColorJitter()(sample).img
        monkeypatch.undo()
        wanted = functional.adjust_brightness(img, 1 + 0.8 * 32 / 255)
        factors = [0.5 + 0.2, 0.5 + 0.7, (2 * 0.4 - 1) * 18 / 360]
        if order < 0.5:
            wanted = functional.adjust_contrast(wanted, factors[0])
            wanted = functional.adjust_hue(functional.adjust_saturation(wanted, factors[1]), factors[2])
        else:
            wanted = functional.adjust_saturation(wanted, factors[0])
            wanted = functional.adjust_hue(wanted, (2 * 0.7 - 1) * 18 / 360)
            wanted = functional.adjust_contrast(wanted, 0.5 + 0.4)
        assert (got.as_subclass(torch.Tensor).int() - wanted).abs().max() <= 1  # draws are float32
    monkeypatch.setattr(torch, 'rand', lambda size: torch.tensor(0.9))
    assert torch.equal(ColorJitter()(sample).img, sample.img)


def test_evaluation_sizes_without_antialiasing_and_in_whole_cells():
    sample = one_square(90, 140)
    plain = ResizeShortSide(size=40, antialias=False)(sample)
    wanted = cv2.resize(geometry.as_array(sample.img), (62, 40), interpolation=cv2.INTER_LINEAR)
    assert plain.img.shape[-2:] == (40, 62)
    assert (geometry.as_array(plain.img).astype(int) - wanted).__abs__().max() <= 1
    assert not torch.equal(plain.img, ResizeShortSide(size=40)(sample).img)
    assert not torch.equal(ResizeTo(size=40, antialias=False)(sample).img, ResizeTo(size=40)(sample).img)
    # mmsegmentation, ResizeToMultiple: the next multiples of 32
    assert ResizeShortSide(size=40, divisor=32, round_up=True)(sample).img.shape[-2:] == (64, 64)
    assert ResizeShortSide(size=40, divisor=32)(sample).img.shape[-2:] == (32, 64)


def test_a_crop_may_stay_smaller_than_its_size():
    sample = RandomCrop(size=64, max_category_fraction=1.0, fill=None)(one_square(40, 90))
    assert (
        sample.img.shape[-2:] == sample.target.semantic.shape == (40, 64)
        and not (sample.target.semantic == IGNORE).any()
    )


def test_resizing_by_a_random_ratio_antialiases_by_default():
    img = torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8)
    resized = [
        RandomResize(scale=(40, 40), ratio=(1.0, 1.0), **options)(Sample(img, Target(), Meta(0))).img
        for options in ({}, dict(antialias=True), dict(antialias=False))
    ]
    assert torch.equal(resized[0], resized[1]) and not torch.equal(resized[0], resized[2])


def test_an_object_needs_a_box_with_an_area_and_a_mask_with_a_pixel():
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 0, 2, 4], [0, 0, 4, 4]])
    masks = torch.ones(3, 4, 4, dtype=torch.bool)
    masks[2] = False
    kept = geometry.drop_empty(Target(boxes=boxes, masks=masks, labels=torch.tensor([1, 2, 3])))
    assert kept.labels.tolist() == [1]
    assert geometry.drop_empty(Target(boxes=boxes, labels=torch.tensor([1, 2, 3]))).labels.tolist() == [1, 3]
    assert geometry.drop_empty(Target(masks=masks, labels=torch.tensor([1, 2, 3]))).labels.tolist() == [1, 2]


def test_padding_is_black_by_default():
    sample = Sample(torch.full((3, 4, 6), 9, dtype=torch.uint8), Target(), Meta(0))
    padded = Pad(size=8)(sample).img
    assert padded.shape == (3, 8, 8) and (padded[:, :4, :6] == 9).all() and padded.int().sum() == 9 * 3 * 4 * 6
    assert Pad(size=8, fill=5)(sample).img[0, 7, 7] == 5
