"""Sizes for detectors: what comes out is as large as it should be, and boxes and masks follow the pixels."""

import inspect

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.collate import collate
from vitdense.data.sampling import SampleIndex, SeededDataset
from vitdense.data.transforms.common import RandomFlip
from vitdense.data.transforms.detection import DETR_SIZES, LargeScaleJitter, MultiScaleCrop
from vitdense.errors import ConfigError
from vitdense.model import Preprocessor
from vitdense.types import Meta, Sample, Target


def blocks(height=300, width=400):
    """Four bright blocks of known colour on black, each with box, mask, label, area, crowd flag and id."""
    corners = np.array([[20, 30, 90, 80], [200, 40, 330, 120], [60, 180, 160, 280], [300, 200, 390, 290]])
    img = torch.zeros(3, height, width, dtype=torch.uint8)
    masks = torch.zeros(4, height, width, dtype=torch.bool)
    for row, (x0, y0, x1, y1) in enumerate(corners.tolist()):
        masks[row, y0:y1, x0:x1] = True
        img[:, y0:y1, x0:x1] = 60 * (row + 1)
    boxes = torch.from_numpy(corners).float()
    target = Target(
        boxes=tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=(height, width)),
        labels=torch.arange(4),
        masks=tv_tensors.Mask(masks),
        iscrowd=torch.tensor([False, False, True, False]),
        area=torch.arange(4.0),
        annotation_ids=torch.arange(4) + 100,
    )
    return Sample(tv_tensors.Image(img), target, Meta(0, orig_size=(height, width)))


def assert_recorded(sample, transform):
    """Each object left is known by its id: its box bounds its mask, and lies on its own colour."""
    target = sample.target
    counts = {len(field) for field in target if field is not None}
    assert len(counts) == 1, 'every field lost the same objects'
    for row, number in enumerate((target.annotation_ids - 100).tolist()):
        assert target.labels[row] == target.area[row] == number and target.iscrowd[row] == (number == 2)
        rows, columns = target.masks[row].nonzero(as_tuple=True)
        recorded = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (target.boxes[row] - recorded).abs().max() <= 1.5, transform
        inside = sample.img[0][target.masks[row]].float()
        thin = (target.boxes[row, 2:] - target.boxes[row, :2]).min() < 5  # all border, where colours blend
        assert thin or (inside.median() - 60 * (number + 1)).abs() <= 20
    assert (target.boxes[:, 2:] > target.boxes[:, :2]).all() and (target.boxes >= 0).all()
    height, width = sample.img.shape[-2:]
    assert (target.boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize('pad', [True, False])
def test_large_scale_jitter(pad):
    jitter = LargeScaleJitter(size=256, pad=pad)
    sides = []
    for seed in range(40):
        torch.manual_seed(seed)
        sample = jitter(blocks())
        assert_recorded(sample, jitter)
        sides.append(max(sample.img.shape[-2:]))
        assert tuple(sample.img.shape[-2:]) == (256, 256) if pad else sides[-1] <= 256
    assert pad or (min(sides) < 60 and max(sides) == 256)  # 0.1 of 256 up to cut at 256


def test_jitter_fills_what_is_missing_with_gray():
    sample = LargeScaleJitter(size=400, ratio=(0.5, 0.5))(blocks())
    assert (
        sample.img.shape == (3, 400, 400)
        and (sample.img[:, 150:] == 128).all()
        and (sample.img[:, :, 200:] == 128).all()
    )
    assert sample.target.boxes[0].tolist() == [10, 15, 45, 40] and len(sample.target.labels) == 4


def test_multi_scale_sizes_are_those_of_detr():
    recorded = set()
    for seed in range(60):
        torch.manual_seed(seed)
        height, width = MultiScaleCrop(probability=0)(blocks()).img.shape[-2:]
        assert abs(width / height - 4 / 3) < 0.01 and height in DETR_SIZES
        recorded.add(height)
    assert len(recorded) > 8
    assert MultiScaleCrop(sizes=[800], probability=0)(blocks(200, 600)).img.shape == (3, 444, 1333)
    assert MultiScaleCrop(sizes=[96], square=True)(blocks(200, 600)).img.shape == (3, 96, 96)


def test_multi_scale_crops_keep_objects_in_their_place():
    transform = MultiScaleCrop(sizes=(96, 160), max_size=200, probability=1, before=(80, 120), crop=(64, 110))
    lost = 0
    for seed in range(40):
        torch.manual_seed(seed)
        sample = transform(blocks())
        assert_recorded(sample, transform)
        assert min(sample.img.shape[-2:]) <= 160 and max(sample.img.shape[-2:]) <= 200
        lost += 4 - len(sample.target.labels)
    assert lost > 20  # windows are smaller than the image


def test_a_small_image_is_cropped_as_far_as_it_goes():
    for height, width in ((1, 1), (3, 500), (500, 3)):
        sample = Sample(tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8)), Target(), Meta(0))
        assert min(MultiScaleCrop(probability=1)(sample).img.shape) >= 1
        assert LargeScaleJitter(size=64)(sample).img.shape == (3, 64, 64)


@pytest.mark.parametrize(
    ('transform', 'arguments'),
    [
        (MultiScaleCrop, dict(sizes=())),
        (MultiScaleCrop, dict(sizes=(2000,))),
        (MultiScaleCrop, dict(crop=(600, 384))),
        (LargeScaleJitter, dict(ratio=(2.0, 0.1))),
        (LargeScaleJitter, dict(size=0)),
    ],
)
def test_wrong_arguments_are_errors(transform, arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        transform(**arguments)


def test_real_images_in_native_aspect_become_a_batch_with_valid_pixels(shared):
    data = CocoDetection(
        'annotations/instances_train2017.json',
        'train2017',
        root=shared / 'coco_mini480',
        transforms=[RandomFlip(), MultiScaleCrop(sizes=(96, 128), max_size=200, before=(100,), crop=(64, 90))],
    )
    seeded = SeededDataset(data, 0)
    samples = [seeded[SampleIndex(0, index)] for index in range(6)]
    again = seeded[SampleIndex(0, 3)]
    assert torch.equal(again.img, samples[3].img) and torch.equal(again.target.boxes, samples[3].target.boxes)
    batch = Preprocessor((0.5,) * 3, (0.5,) * 3, divisor=16)(collate(samples))
    assert batch.valid.shape == (6, *batch.imgs.shape[-2:]) and not batch.valid.all()
    for row, sample in enumerate(samples):
        assert batch.valid[row].sum() == sample.img[0].numel() and sample.meta.size == tuple(sample.img.shape[-2:])
        assert (batch.imgs[row][:, ~batch.valid[row]] == 0).all()


def test_jitter_draws_again_until_something_labelled_is_left():
    """EoMT, datasets/transforms.py: a crop without a mask is drawn again."""
    sample = blocks()
    boxes, labels, masks = sample.target[:3]
    target = Target(tv_tensors.wrap(boxes[:1], like=boxes), labels[:1], tv_tensors.Mask(masks[:1]))
    semantic = torch.full((300, 400), 255, dtype=torch.uint8)
    semantic[30:80, 20:90] = 1
    alone = sample._replace(target=target)
    labelled = sample._replace(target=Target(semantic=tv_tensors.Mask(semantic)))
    torch.manual_seed(0)
    lost = {True: 0, False: 0}
    for require in (True, False):
        jitter = LargeScaleJitter(size=64, ratio=(1.5, 2.0), require_labels=require)
        for _ in range(30):
            lost[require] += len(jitter(alone).target.labels) == 0
            lost[require] += not (jitter(labelled).target.semantic != 255).any()
    assert lost[True] == 0 and lost[False] > 0
    none = Target(semantic=tv_tensors.Mask(torch.full_like(semantic, 255)))
    empty = LargeScaleJitter(size=64, require_labels=True)(sample._replace(target=none))
    assert empty.img.shape == (3, 64, 64)


def test_sides_of_a_crop_are_sampled_between_the_bounds_and_the_image():
    sizes = set()
    crop = MultiScaleCrop(sizes=[32], before=[64], crop=(8, 40), probability=1.0)
    for _ in range(40):
        img = crop._cut(Sample(torch.zeros(3, 64, 96, dtype=torch.uint8), Target(), Meta(0)))[0].img
        sizes.update(img.shape[-2:])
    assert min(sizes) >= 8 and max(sizes) <= 40 and len(sizes) > 10


def test_defaults_are_those_of_the_sources():
    sizes = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # facebookresearch/detr, datasets/coco.py
    detr = dict(sizes=sizes, max_size=1333, probability=0.5, before=(400, 500, 600), crop=(384, 600), square=False)
    jitter = dict(size=1024, ratio=(0.1, 2.0), pad=True, fill=128, require_labels=False)  # ViTDet
    for kind, wanted in ((MultiScaleCrop, detr), (LargeScaleJitter, jitter)):
        parameters = inspect.signature(kind).parameters.values()
        assert {each.name: each.default for each in parameters} == wanted


@pytest.mark.parametrize(
    ('kind', 'name', 'low', 'high'),
    [
        (MultiScaleCrop, 'sizes', (1,), (1333,)),
        (MultiScaleCrop, 'before', (1,), (65535,)),
        (MultiScaleCrop, 'probability', 0, 1),
        (LargeScaleJitter, 'size', 1, 65535),
        (LargeScaleJitter, 'fill', 0, 255),
    ],
)
def test_numbers_up_to_their_bounds_are_accepted(kind, name, low, high):
    several = isinstance(low, tuple)
    for value in (low, high):
        kind(**{name: value})
    for value in (low[0] - 0.25, high[0] + 0.25) if several else (low - 0.25, high + 0.25):
        with pytest.raises(ConfigError, match=name):
            kind(**{name: (value,) if several else value})
    for value in ('800', 800, ()) if several else ():
        with pytest.raises(ConfigError, match=name):
            kind(**{name: value})


def test_a_labelled_image_is_sampled_fifty_times_at_most(monkeypatch):
    indices = []
    monkeypatch.setattr(LargeScaleJitter, '_jitter', lambda self, sample: indices.append(sample) or sample)

    def count(target: Target, **options) -> int:
        indices.clear()
        LargeScaleJitter(size=8, **options)(Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), target, Meta(0)))
        return len(indices)

    blank = torch.full((8, 8), 255, dtype=torch.uint8)
    none = Target(labels=torch.zeros(0, dtype=torch.int64))
    assert count(none, require_labels=True) == count(Target(semantic=blank), require_labels=True) == 50
    assert count(none) == count(Target(), require_labels=True) == 1
    one_pixel = blank.clone()
    one_pixel[3, 4] = 0
    both = Target(labels=torch.zeros(0, dtype=torch.int64), semantic=one_pixel)
    assert count(both, require_labels=True) == count(Target(labels=torch.tensor([0])), require_labels=True) == 1


def test_crops_reach_both_bounds_and_small_images_stay_whole():
    def sides(low: int, high: int, height: int, width: int) -> tuple[set[int], set[int]]:
        crop = MultiScaleCrop(sizes=[32], before=[min(height, width)], crop=(low, high), probability=1.0)
        img = torch.zeros(3, height, width, dtype=torch.uint8)
        sampled = [crop._cut(Sample(img, Target(), Meta(0)))[1] for _ in range(200)]
        return {height for height, _ in sampled}, {width for _, width in sampled}

    assert sides(8, 11, 20, 30) == (set(range(8, 12)), set(range(8, 12)))
    assert sides(8, 30, 10, 20) == ({8, 9, 10}, set(range(8, 21)))
    assert sides(30, 40, 10, 35) == ({10}, set(range(30, 36)))
