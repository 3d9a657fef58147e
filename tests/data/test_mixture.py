"""A mixture of data sets: the share and the order of each, and the same batches for any number of workers."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from vitdense.data.class_names import join_metainfo
from vitdense.data.collate import collate
from vitdense.data.files.images import UnreadableImage
from vitdense.data.mixture import Mixture, MixtureSampler
from vitdense.data.sampling import InfiniteSampler, SampleIndex, SeededDataset, worker_init
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms.common import RandomCrop, RandomFlip
from vitdense.errors import ConfigError
from vitdense.ops.mixing import ImageMixing
from vitdense.types import Batch, Meta, Sample, Target


class ImageDataset:
    """`length` tiny images whose pixels are their number; those in `bad` cannot be read."""

    def __init__(self, length: int, name: str, *, field: str = 'semantic', names=('a', 'b'), bad=(), **options) -> None:
        self.length, self.name, self.bad, self.root = length, name, set(bad), options.get('root')
        self.metainfo = {'classes': {field: list(names)}, 'palette': {field: [[0, 0, 0]] * len(names)}}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise UnreadableImage(f'{index}.jpg: truncated', where=f'/data/{index}.jpg', fix='remove it')
        return Sample(torch.full((3, 2, 2), index, dtype=torch.uint8), Target(), Meta(index, dataset=self.name))


def three(**options) -> Mixture:
    parts = dict(maps=5, boxes=7, labels=3)
    fields = dict(maps='semantic', boxes='labels', labels='image_label')
    return Mixture({name: ImageDataset(length, name, field=fields[name]) for name, length in parts.items()}, **options)


def scenes(**options) -> Mixture:
    crop = dict(size=48, transforms=[RandomCrop(size=24), RandomFlip()])
    return Mixture(
        dict(
            first=dict(type=ShapesScenes, num_images=5, **crop),
            second=dict(type=ShapesScenes, num_images=3, **crop),
        ),
        **options,
    )


def take(mixture: Mixture, count: int, **options) -> list[SampleIndex]:
    return list(itertools.islice(mixture.sampler(**{'batch_size': 4, 'seed': 3, **options}), count))


def names_of(mixture: Mixture, samples: list[SampleIndex]) -> list[str]:
    return [mixture[draw.index].meta.dataset for draw in samples]


def test_indices_follow_each_other_and_metainfo_is_joined():
    mixture = three()
    assert len(mixture) == 15
    assert [(mixture[i].meta.dataset, mixture[i].meta.image_id) for i in (0, 4, 5, 11, 12, 14)] == [
        ('maps', 0), ('maps', 4), ('boxes', 0), ('boxes', 6), ('labels', 0), ('labels', 2)
    ]  # fmt: skip
    assert [mixture.span(index) for index in (0, 5, 14)] == [(0, 5), (5, 12), (12, 15)]
    assert set(mixture.metainfo['classes']) == set(mixture.metainfo['palette']) == {'semantic', 'labels', 'image_label'}


def test_every_round_holds_the_weights_and_is_shuffled():
    mixture = three(weights=dict(maps=4, boxes=2, labels=2))  # the same as 2, 1, 1
    sampled = names_of(mixture, take(mixture, 400))
    rounds = [tuple(sampled[start : start + 4]) for start in range(0, 400, 4)]
    assert all(Counter(each) == dict(maps=2, boxes=1, labels=1) for each in rounds)
    assert len(set(rounds)) == 12  # all orders occur
    shares = three(weights=dict(maps=0.5, boxes=0.3, labels=0.2)).blocks
    assert [turns / sum(shares) for turns in shares] == pytest.approx([0.5, 0.3, 0.2])
    assert three().blocks == [5, 7, 3]  # an epoch of everything
    alone = three(weights=dict(maps=0, boxes=0.5, labels=0))
    assert set(names_of(alone, take(alone, 50))) == {'boxes'}
    assert set(alone.metainfo['classes']) == {'semantic', 'labels', 'image_label'}  # the model stays the same
    assert sorted(draw.index for draw in take(three(), 15)) == list(range(15))


@pytest.mark.parametrize('batches', ['mixed', 'homogeneous'])
def test_a_data_set_draws_in_a_mixture_as_it_does_alone(batches):
    mixture = three(weights=dict(maps=3, boxes=1, labels=2), batches=batches)
    samples = take(mixture, 480)
    for name, offset, length in (('maps', 0, 5), ('boxes', 5, 7), ('labels', 12, 3)):
        own = [SampleIndex(d.epoch, d.index - offset) for d in samples if mixture[d.index].meta.dataset == name]
        assert own == list(itertools.islice(InfiniteSampler(length, seed=3), len(own)))
    scene, alone = SeededDataset(scenes(), 1), SeededDataset(scenes().datasets['second'], 1)
    assert (scene[SampleIndex(2, 5 + 1)].img == alone[SampleIndex(2, 1)].img).all()  # augmentations included


def test_homogeneous_batches_hold_one_data_set_each():
    mixture = three(weights=dict(maps=2, boxes=1, labels=1), batches='homogeneous')
    sampled = names_of(mixture, take(mixture, 64))
    batches = [set(sampled[start : start + 4]) for start in range(0, 64, 4)]
    assert all(len(batch) == 1 for batch in batches)
    assert Counter(name for batch in batches for name in batch) == dict(maps=8, boxes=4, labels=4)


@pytest.mark.parametrize('batches', ['mixed', 'homogeneous'])
def test_starting_at_k_equals_dropping_k_and_ranks_share_one_stream(batches):
    mixture = three(weights=dict(maps=1, boxes=3, labels=1), batches=batches)
    for rank in range(3):
        location = dict(rank=rank, world_size=3)
        assert take(mixture, 20, **location, start=16) == take(mixture, 36, **location)[16:]
    whole, unit = take(mixture, 48), 4 if batches == 'homogeneous' else 1
    ranks = [take(mixture, 16, rank=rank, world_size=3) for rank in range(3)]
    turns = [rank[start : start + unit] for start in range(0, 16, unit) for rank in ranks]
    assert [draw for turn in turns for draw in turn] == whole


def test_a_start_within_a_batch_begins_with_the_next():
    mixture = three(batches='homogeneous')
    assert take(mixture, 8, start=6) == take(mixture, 16)[8:]


@pytest.mark.parametrize('batches', ['mixed', 'homogeneous'])
def test_any_number_of_workers_gives_the_same_batches(batches):
    def sampled(workers: int, start: int = 0) -> list[Batch]:
        mixture = scenes(weights=dict(first=1, second=1), batches=batches)
        sampler = mixture.sampler(batch_size=2, seed=5, start=start)
        loader = DataLoader(
            SeededDataset(mixture, 5),
            batch_size=2,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=worker_init,
        )
        return [(batch.imgs, batch.metas) for batch in itertools.islice(loader, 5 - start // 2)]

    alone = sampled(0)
    for other in (sampled(2), [*alone[:2], *sampled(1, start=4)]):
        for (imgs, metas), (theirs, more) in zip(alone, other, strict=True):
            assert (imgs == theirs).all() and metas == more


def test_a_bad_image_is_replaced_from_its_own_data_set(caplog):
    mixture = Mixture(dict(a=ImageDataset(50, 'a'), b=ImageDataset(4, 'b', bad={1})))
    seeded = SeededDataset(mixture, 0, max_bad_fraction=0.5)
    actual = [seeded[SampleIndex(epoch, 51)].meta for epoch in range(20)]
    assert {meta.dataset for meta in actual} == {'b'} and {meta.image_id for meta in actual} == {0, 2, 3}


def test_recipes_get_their_name_and_their_root():
    recipe = dict(type=ImageDataset, length=2)
    mixture = Mixture(dict(a=dict(recipe, root='x'), b=dict(recipe, name='own')), root='/data')
    assert [dataset.name for dataset in mixture.datasets.values()] == ['a', 'own']
    scene = scenes().datasets
    assert [dataset.name for dataset in scene.values()] == ['first', 'second']


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="classes of 'semantic' are not the same"):
        Mixture(dict(a=ImageDataset(2, 'a'), b=ImageDataset(2, 'b', names=('a', 'c'))))
    with pytest.raises(ConfigError, match="(?s)weights.mops.*did you mean 'maps'"):
        three(weights=dict(mops=1, boxes=1, labels=1))
    for weights in (dict(maps=0, boxes=0, labels=0), dict(maps=-1, boxes=1, labels=1), dict(maps=1, boxes=1)):
        with pytest.raises(ConfigError, match='Mixture.weights'):
            three(weights=weights)
    with pytest.raises(ConfigError, match='batches'):
        three(batches='homogenous')
    with pytest.raises(ConfigError, match='empty'):
        next(iter(MixtureSampler([3, 0], [1, 1])))
    joined = join_metainfo({'classes': {'a': ['x']}, 'note': 1}, {'classes': {'b': ['y']}, 'note': 2}, where='')
    assert joined == {'classes': {'a': ['x'], 'b': ['y']}, 'note': 1}


def test_mixing_applies_to_rows_with_an_image_label_only():
    """Of a mixed batch: the images of the labelled-maps data set keep their pixels and their targets to the bit."""
    maps = Target(semantic=torch.zeros(4, 4, dtype=torch.uint8))
    both = Target(semantic=torch.zeros(4, 4, dtype=torch.uint8), image_label=torch.tensor(1))
    boxes = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    labels = [Target(image_label=torch.tensor(value)) for value in (0, 2)]
    targets = [maps, labels[0], both, boxes, labels[1], Target()]
    imgs = torch.randn(6, 3, 4, 4)
    metas = [Meta(row, size=(4, 4)) for row in range(6)]
    mixed = ImageMixing(3, mixup=0.8, cutmix=0.0, erase=1.0)(Batch(imgs, targets, metas))
    for row in (0, 2, 3, 5):
        assert torch.equal(mixed.imgs[row], imgs[row]) and mixed.targets[row] is targets[row]
    for row in (1, 4):
        assert not torch.equal(mixed.imgs[row], imgs[row]) and mixed.targets[row].image_label.shape == (3,)
