"""How large images can become: no draw is larger, and some draws are as large."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from vitdense.commands.worst_case import largest_sizes, worst_batch
from vitdense.data.mixture import Mixture
from vitdense.data.sampling import SeededDataset
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms.common import Pipeline, RandomCrop, RandomFlip, RandomResize, ResizeShortSide, ResizeTo
from vitdense.data.transforms.detection import LargeScaleJitter, MultiScaleCrop
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.types import Meta, Sample, Target


@pytest.mark.parametrize(
    'transforms',
    [
        [RandomResize(scale=(96, 48), ratio=(0.5, 1.5))],
        [RandomResize(scale=(96, 48)), RandomCrop(size=(40, 56)), RandomFlip()],
        [MultiScaleCrop(sizes=(24, 32, 48), max_size=80, before=(30, 40), crop=(16, 40))],
        [MultiScaleCrop(sizes=(24, 32, 48), max_size=80, square=True)],
        [MultiScaleCrop(sizes=(24, 32, 48), max_size=80, probability=0.0), v2.RandomGrayscale()],
        [LargeScaleJitter(size=48)],
        [LargeScaleJitter(size=48, ratio=(0.1, 1.2), pad=False)],
        [ResizeShortSide(size=40, max_size=60, divisor=8)],
        [ResizeTo(size=(32, 48))],
        [EvaluationCrop(size=32)],
        [],
    ],
    ids=lambda transforms: '-'.join(type(part).__name__ for part in transforms) or 'none',
)
def test_largest_sizes_bound_the_samples_closely(transforms):
    sources = [(30, 52), (61, 40)]
    bounds = largest_sizes(transforms, sources)
    pipeline, sampled = Pipeline(transforms), []
    for draw in range(120):
        size = sources[draw % 2]
        img = tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))
        sampled.append(tuple(pipeline(Sample(img, Target(), Meta(0, orig_size=size, size=size))).img.shape[-2:]))
    for axis in (0, 1):
        bound, largest = (max(size[axis] for size in sizes) for sizes in (bounds, sampled))
        assert 0.9 * bound <= largest <= bound


def test_a_worst_batch_has_the_largest_size_and_the_most_objects():
    data = ShapesScenes(
        num_images=8, split='train', size=48, num_objects=(5, 5), transforms=[RandomResize(scale=(64, 64))]
    )
    batch = worst_batch(data, 3)
    assert batch.imgs.shape == (3, 3, 128, 128) and [meta.size for meta in batch.metas] == [(128, 128)] * 3
    target = batch.targets[0]
    assert len(target.boxes) == len(target.labels) <= 5 and target.semantic.shape == (128, 128)
    assert (target.boxes[:, 2:] > target.boxes[:, :2]).all() and target.masks.shape == (len(target.boxes), 128, 128)
    assert int(target.labels.max()) < 3 and {meta.dataset for meta in batch.metas} == {data.name}


class Listed:
    """A data set with an extent: upright and lying images, up to 63 objects."""

    metainfo = {'classes': {'labels': ['a', 'b']}}

    def __len__(self):
        return 2

    def __getitem__(self, index):
        img = torch.zeros(3, 8, 8, dtype=torch.uint8)
        return Sample(img, Target(boxes=torch.zeros(1, 4), labels=torch.zeros(1).long()), Meta(index, orig_size=(8, 8)))

    def extent(self):
        return [(20, 40), (60, 30)], 63


def test_portrait_and_landscape_images_fill_one_size():
    batch = worst_batch(Listed(), 2)
    assert batch.imgs.shape == (2, 3, 60, 40) and len(batch.targets[0].boxes) == 63
    assert batch.targets[0].semantic is None
    assert worst_batch(Listed(), 1).imgs.shape == (1, 3, 60, 30)  # one image is either


def test_of_a_mixture_every_data_set_counts_with_its_own_transforms():
    scenes = dict(num_images=4, split='train')
    maps = ShapesScenes(size=48, name='maps', transforms=[RandomCrop(size=(32, 50))], **scenes)
    listed, resized = Listed(), Listed()
    listed.metainfo = resized.metainfo = maps.metainfo
    resized.pipeline, resized.extent = Pipeline([ResizeTo(size=(16, 24))]), lambda: ([(900, 900)], 5)
    parts = dict(listed=listed, resized=resized, maps=maps, resting=ShapesScenes(size=200, name='resting', **scenes))
    mixture = Mixture(parts, weights=dict(listed=1, resized=1, maps=1, resting=0))
    assert [rows for rows, _ in mixture.parts()] == [range(0, 2), range(2, 4), range(4, 8)]
    batch = worst_batch(SeededDataset(mixture), 4)
    assert batch.imgs.shape == (4, 3, 60, 50) and len(batch.targets[0].boxes) == 63
    assert batch.targets[0].semantic.shape == (60, 50)
    assert [meta.dataset for meta in batch.metas] == ['', '', 'maps', '']
