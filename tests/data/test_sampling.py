"""Same seed, same batches: whatever the number of workers, and wherever a run was resumed."""

import itertools
import logging
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vitdense.data.collate import collate
from vitdense.data.files.images import UnreadableImage
from vitdense.data.sampling import EvaluationSampler, InfiniteSampler, SampleIndex, SeededDataset, seeded, worker_init
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.shapes import ShapesScenes
from vitdense.data.transforms.common import PhotometricDistortion, RandomCrop, RandomFlip, RandomResize
from vitdense.errors import ConfigError, DataError, VitDenseError
from vitdense.types import Meta, Sample, Target

AUGMENT = [RandomResize(scale=(80, 60)), RandomCrop(size=32), RandomFlip(), PhotometricDistortion()]


def batches(workers: int, *, start: int = 0, count: int = 5, seed: int = 3) -> list[torch.Tensor]:
    dataset = SeededDataset(ShapesScenes(6, size=48, transforms=AUGMENT), seed)
    sampler = InfiniteSampler(len(dataset), seed=seed, start=start)
    loader = DataLoader(
        dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=collate, worker_init_fn=worker_init
    )
    actual = list(itertools.islice(loader, count))
    return [(batch.imgs, batch.targets[0].semantic) for batch in actual]


def same(left: list, right: list) -> bool:
    return all((a == b).all() for pair in zip(left, right, strict=True) for a, b in zip(*pair, strict=True))


def test_any_number_of_workers_gives_the_same_batches():
    alone = batches(0)
    torch.manual_seed(99)  # what happened before does not matter
    assert same(alone, batches(1)) and same(alone, batches(2))
    assert not same(alone, batches(0, seed=4))


def test_a_resumed_run_continues_with_the_next_batches():
    assert same(batches(0, count=5)[2:], batches(0, start=4, count=3))


def test_a_new_epoch_means_new_augmentations():
    dataset = SeededDataset(ShapesScenes(4, split='val', transforms=AUGMENT), 0)
    assert (dataset[SampleIndex(0, 2)].img != dataset[SampleIndex(1, 2)].img).any()
    assert (dataset[SampleIndex(1, 2)].img == dataset[SampleIndex(1, 2)].img).all()


def test_a_draw_leaves_all_random_states_alone():
    """Dropout must not depend on which sample was read last in the same process."""

    def numbers():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    def fresh():
        torch.manual_seed(5), np.random.seed(5), random.seed(5)

    fresh()
    expected = numbers()
    fresh()
    ShapesScenes(2)  # construction draws nothing
    SeededDataset(ShapesScenes(2), 0)[SampleIndex(0, 1)]
    assert numbers() == expected
    with seeded(1, 2):
        inside = numbers()
    with seeded(1, 2):
        assert numbers() == inside
    with seeded(1, 3):
        assert numbers() != inside


def take(sampler: InfiniteSampler, count: int) -> list[SampleIndex]:
    return list(itertools.islice(sampler, count))


def test_the_infinite_sampler_permutes_every_epoch():
    taken = take(InfiniteSampler(10, seed=1), 30)
    epochs = [[draw.index for draw in taken if draw.epoch == epoch] for epoch in range(3)]
    assert all(sorted(indices) == list(range(10)) for indices in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [draw.index for draw in take(InfiniteSampler(3, shuffle=False), 7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize('world_size', [1, 2, 3, 16])
def test_starting_at_k_equals_dropping_k(world_size):
    for rank in range(world_size):
        location = {'seed': 7, 'rank': rank, 'world_size': world_size}
        assert take(InfiniteSampler(10, **location, start=13), 9) == take(InfiniteSampler(10, **location), 22)[13:]


def test_ranks_share_one_stream():
    whole = take(InfiniteSampler(10, seed=2), 24)
    ranks = [take(InfiniteSampler(10, seed=2, rank=rank, world_size=3), 8) for rank in range(3)]
    assert [draw for turn in zip(*ranks, strict=True) for draw in turn] == whole


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_evaluation_covers_everything_exactly_once(world_size):
    samplers = [EvaluationSampler(10, rank=rank, world_size=world_size) for rank in range(world_size)]
    sampled = [draw.index for sampler in samplers for draw in sampler]
    assert sorted(sampled) == list(range(10)) and sum(map(len, samplers)) == 10


def test_samplers_refuse_what_cannot_be():
    for build in (lambda: InfiniteSampler(0), lambda: EvaluationSampler(5, rank=2, world_size=2)):
        with pytest.raises(ConfigError):
            build()


class ImageDataset:
    """Six tiny samples, some of which cannot be read."""

    metainfo = {'classes': {}}

    def __init__(self, bad: set[int], *, length: int = 6, error: type[VitDenseError] = UnreadableImage) -> None:
        self.bad, self.length, self.error = bad, length, error

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise self.error(f'{index}.jpg: truncated', where=f'/data/{index}.jpg', fix='remove it')
        return Sample(torch.full((3, 2, 2), index, dtype=torch.uint8), Target(), Meta(index))


def test_a_bad_image_is_replaced_by_the_seed_and_logged_once(caplog):
    def indices(workers: int) -> list[int]:
        dataset = SeededDataset(ImageDataset({3}), 0)
        loader = DataLoader(
            dataset, sampler=InfiniteSampler(6, seed=0), num_workers=workers, collate_fn=collate, batch_size=6
        )
        actual = [meta.image_id for batch in itertools.islice(loader, 3) for meta in batch.metas]
        assert dataset.num_bad == 1  # counted in the workers, seen here
        return actual

    with caplog.at_level(logging.WARNING, 'vitdense'):
        alone = indices(0)
    assert 3 not in alone and len(alone) == 18
    assert caplog.text.count('/data/3.jpg') == 1
    assert alone == indices(2)


def test_evaluation_never_skips():
    with pytest.raises(UnreadableImage):
        SeededDataset(ImageDataset({3}), tolerate=False)[SampleIndex(0, 3)]


def test_wrong_labels_always_stop_the_run():
    with pytest.raises(DataError) as caught:
        SeededDataset(ImageDataset({3}, error=DataError))[SampleIndex(0, 3)]
    assert not isinstance(caught.value, UnreadableImage)


def test_too_many_bad_images_stop_the_run():
    dataset = SeededDataset(ImageDataset({0, 1, 2}, length=200))
    assert dataset[SampleIndex(0, 0)] and dataset[SampleIndex(0, 1)]  # 1 % of 200
    with pytest.raises(DataError, match='3 of 200 images are unreadable'):
        dataset[SampleIndex(0, 2)]
    with pytest.raises(DataError, match='20 unreadable images in a row'):
        SeededDataset(ImageDataset(set(range(50)), length=50), max_bad_fraction=1.0)[SampleIndex(0, 0)]


def test_a_truncated_file_of_a_real_folder(tmp_path):
    for index in range(4):
        for folder, array in (('images', np.zeros((8, 8, 3), np.uint8)), ('labels', np.zeros((8, 8), np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f'{index}.png')
    bad = tmp_path / 'images/1.png'
    bad.write_bytes(bad.read_bytes()[:40])
    dataset = SegmentationDataset(tmp_path / 'images', tmp_path / 'labels', classes=['a'])
    assert SeededDataset(dataset)[SampleIndex(0, 1)].meta.image_id != '1'
    with pytest.raises(UnreadableImage, match='1.png'):
        SeededDataset(dataset, tolerate=False)[SampleIndex(0, 1)]


def test_errors_keep_their_kind_between_processes():
    error = UnreadableImage('a.jpg: truncated', where='/data/a.jpg', why='short', fix='remove it')
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is UnreadableImage and str(back) == str(error)


def test_collate_pads_right_and_bottom():
    samples = [
        Sample(torch.full((3, *size), 7, dtype=torch.uint8), Target(), Meta(0, size=size)) for size in ((4, 6), (5, 3))
    ]
    batch = collate(samples)
    assert batch.imgs.shape == (2, 3, 5, 6) and batch.imgs.dtype == torch.uint8 and batch.valid is None
    assert batch.imgs[0, :, 4:].max() == 0 and batch.imgs[1, :, :, 3:].max() == 0
    assert (batch.imgs[0, :, :4] == 7).all() and (batch.imgs[1, :, :, :3] == 7).all()
    assert [meta.size for meta in batch.metas] == [(4, 6), (5, 3)]
