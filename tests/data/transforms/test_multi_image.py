"""Steps that combine images: objects, masks and label maps move with the pixels, and a seed decides everything."""

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from tests.data.transforms.test_detection import blocks
from vitdense.data.collate import collate
from vitdense.data.files.images import UnreadableImage
from vitdense.data.sampling import InfiniteSampler, SampleIndex, SeededDataset
from vitdense.data.transforms.common import Pipeline, RandomFlip
from vitdense.data.transforms.degradation import GaussianBlur, GaussianNoise
from vitdense.data.transforms.multi_image import CopyPaste, MixUp, Mosaic
from vitdense.data.transforms.random import in_epoch
from vitdense.errors import ConfigError
from vitdense.types import Sample, Target


class Scenes:
    """`count` scenes of four blocks; the gray levels of scene k are k more than those of scene 0."""

    metainfo = {'classes': {}}

    def __init__(self, transforms, count=6, broken=(), semantic=True):
        self.pipeline, self.count, self.broken, self.semantic = Pipeline(transforms), count, broken, semantic

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.pipeline(self.read(index), self)

    def read(self, index):
        if index in self.broken:
            raise UnreadableImage(f'{index} is broken', where='here', why='a test', fix='none')
        sample = blocks()
        target = sample.target._replace(annotation_ids=sample.target.annotation_ids - 100 + 10 * index)
        if self.semantic:
            target = target._replace(semantic=tv_tensors.Mask(sample.img[0] // 60))
        meta = sample.meta._replace(image_id=index)
        return sample._replace(img=tv_tensors.Image(sample.img + index), target=target, meta=meta)


def levels(dataset, index=0, epoch=0, seed=0):
    return SeededDataset(dataset, seed)[SampleIndex(epoch, index)]


def assert_consistent(sample, *, border=2):
    """Each object is where its mask is, and all pixels of its mask have its colour."""
    target = sample.target
    assert (
        len({len(field) for name, field in target._asdict().items() if field is not None and name != 'semantic'}) == 1
    )
    for row, number in enumerate(target.annotation_ids.tolist()):
        scene, block = divmod(number, 10)
        assert target.labels[row] == block and target.iscrowd[row] == (block == 2)
        rows, columns = target.masks[row].nonzero(as_tuple=True)
        bounds = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (target.boxes[row] - bounds).abs().max() <= border
        colours = sample.img[0][target.masks[row]].float()
        assert (colours.median() - 60 * (block + 1) - scene).abs() <= 1
        if target.semantic is not None:
            assert target.semantic[target.masks[row]].float().median() == block + 1


def test_a_mosaic_has_the_objects_of_four_images_where_their_pixels_are():
    dataset = Scenes([Mosaic(size=(240, 320), probability=1)])
    scenes, num_gray = set(), 0
    for index in range(6):
        sample = levels(dataset, index)
        assert sample.img.shape == (3, 240, 320) and sample.meta.size == (240, 320)
        assert sample.target.semantic.shape == (240, 320)
        assert_consistent(sample)
        scenes |= {number // 10 for number in sample.target.annotation_ids.tolist()}
        gray = (sample.img == 114).all(0) & (sample.target.semantic == 255)
        num_gray += int(gray.sum())
    assert len(scenes) > 4 and num_gray > 500


def test_the_quadrants_of_a_mosaic_touch_its_point():
    class Plain(Scenes):
        def read(self, index):
            img = tv_tensors.Image(torch.full((3, 100, 100), 10 * index + 10, dtype=torch.uint8))
            return Sample(img, Target(), super().read(0).meta)

    sample = levels(Plain([Mosaic(size=100, ratio=(2, 2), probability=1)]), 3)
    corners = [sample.img[0, row, column].item() for row in (0, -1) for column in (0, -1)]
    changes = [(sample.img[0].int().diff(dim=axis) != 0).any(1 - axis).sum() for axis in (0, 1)]
    assert corners[0] == 40 and max(changes) == 1  # one straight border in each direction, no gray


def test_mixup_blends_pixels_and_joins_objects():
    dataset = Scenes([MixUp(probability=1)], semantic=False)
    sample = next(each for seed in range(9) if len((each := levels(dataset, 2, seed=seed)).target.labels) == 8)
    assert sample.target.annotation_ids[:4].tolist() == [20, 21, 22, 23]
    other = sample.target.annotation_ids[4].item() // 10
    first, second = dataset.read(2).img[0].float(), dataset.read(other).img[0].float()
    assert other != 2, 'an image is not mixed with itself: it would have every object twice'
    assert ((sample.img[0].float() - first).abs() <= (first - second).abs() + 0.5).all()
    with pytest.raises(ConfigError, match='semantic maps'):
        levels(Scenes([MixUp()]))


def test_pasted_objects_cover_what_is_below_them():
    dataset = Scenes([RandomFlip(probability=0.5), CopyPaste(probability=1, objects=0.7)])
    counts = []
    for index in range(6):
        for epoch in range(4):
            sample = levels(dataset, index, epoch)
            assert_consistent(sample)
            masks = sample.target.masks.int().sum(0)
            assert masks.max() == 1, 'no pixel has two objects'
            pasted = [number for number in sample.target.annotation_ids.tolist() if number // 10 != index]
            assert not any(number % 10 == 2 for number in pasted), 'crowds are not pasted'
            counts.append(len(pasted))
    assert max(counts) > 1 and min(counts) == 0
    with pytest.raises(ConfigError, match='no masks'):
        CopyPaste().mix(blocks()._replace(target=Target()), None)


def test_objects_that_are_covered_lose_pixels_or_go():
    target = CopyPaste(min_visible=0.5)._below(blocks().target, torch.zeros(300, 400, dtype=torch.bool))
    assert len(target.labels) == 4
    covered = torch.zeros(300, 400, dtype=torch.bool)
    covered[:, :50] = True  # 30 of 70 columns of object 0
    covered[:, 205:] = True  # most of objects 1, all of object 3
    target = CopyPaste(min_visible=0.5)._below(blocks().target, covered)
    assert target.annotation_ids.tolist() == [100, 102] and target.boxes[0].tolist() == [50, 30, 90, 80]


@pytest.mark.parametrize('step', [Mosaic(size=64, probability=1), CopyPaste(probability=1), MixUp(probability=1)])
def test_a_sample_depends_on_its_seed_alone(step):
    dataset = Scenes([RandomFlip(), step], semantic=False)
    first = levels(dataset, 1)
    levels(dataset, 3)
    again, other = levels(dataset, 1), levels(dataset, 1, epoch=1)
    assert torch.equal(first.img, again.img) and torch.equal(first.target.boxes, again.target.boxes)
    assert not torch.equal(first.img, other.img)


@pytest.mark.parametrize('step', [Mosaic, CopyPaste, MixUp])
def test_mixing_ends_before_training_does(step):
    arguments = dict(size=64) if step is Mosaic else {}
    dataset = Scenes([step(**arguments, probability=1, epochs=2)], semantic=False)
    plain = dataset.read(0).img
    assert any(not torch.equal(levels(dataset, 0, epoch=1, seed=seed).img, plain) for seed in range(3))
    assert torch.equal(levels(dataset, 0, epoch=2).img, plain)
    with in_epoch(5):
        assert torch.equal(dataset[0].img, plain)


def test_an_unreadable_image_among_the_others_is_replaced():
    dataset = Scenes([Mosaic(size=64, probability=1)], broken=(1, 2, 3, 4, 5))
    assert {number // 10 for number in levels(dataset, 0).target.annotation_ids.tolist()} == {0}


def test_one_image_alone_cannot_be_mixed():
    with pytest.raises(ConfigError, match='no other images'):
        Pipeline([Mosaic(size=64, probability=1)])(blocks())


def test_noise_and_blur_change_pixels_as_they_say():
    flat = blocks()._replace(img=tv_tensors.Image(torch.full((3, 64, 64), 128, dtype=torch.uint8)))
    torch.manual_seed(0)
    noisy = GaussianNoise(sigma=(0.04, 0.04), probability=1)(flat).img.float()
    assert 9.5 < noisy.std() < 11 and abs(noisy.mean() - 128) < 1  # 0.04 * 255 = 10.2
    assert torch.equal(GaussianNoise(probability=0)(flat).img, flat.img)
    dot = torch.zeros(3, 21, 21, dtype=torch.uint8)
    dot[:, 10, 10] = 255
    blurred = GaussianBlur(sigma=(1.0, 1.0), probability=1)(flat._replace(img=tv_tensors.Image(dot))).img
    assert blurred[0, 10, 10] == round(255 / (2 * torch.pi)) and blurred[0, 10, 11] < blurred[0, 10, 10]
    with pytest.raises(ConfigError):
        GaussianBlur(sigma=(0, 1))


def test_batches_depend_neither_on_the_workers_nor_on_a_resume():
    transforms = [RandomFlip(), CopyPaste(), Mosaic(size=32, probability=0.7, epochs=1)]
    dataset = SeededDataset(Scenes(transforms), 0)

    def images(workers, start=0):
        sampler = InfiniteSampler(len(dataset), start=start)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=collate)
        return [batch.imgs for batch, _ in zip(loader, range(5), strict=False)]

    alone = images(0)
    for workers in (1, 4):
        assert all(torch.equal(one, other) for one, other in zip(alone, images(workers), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(alone[2:], images(1, start=4), strict=False))
