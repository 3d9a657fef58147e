"""Loaders keep the kind of an error across processes, and end their workers."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from vitdense.data.class_names import check_classes
from vitdense.device import _cgroup_quota, choose_precision, cpu_count, torch_threads
from vitdense.errors import ConfigError, DataError, ResourceError
from vitdense.loading.loaders import close_loaders, evaluation_loader, train_loader
from vitdense.types import Meta, Sample, Target


class ImageDataset:
    """Eight images; one is broken, and one kills the process that reads it."""

    def __init__(self, broken: int = -1, deadly: int = -1, classes=('a', 'b')) -> None:
        self.broken, self.deadly = broken, deadly
        self.metainfo = {'classes': {'semantic': list(classes)}}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise DataError('bad label', where='labels/3.png', why='it holds 7', fix='mend it')
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return Sample(torch.full((3, 4, 4), index, dtype=torch.uint8), Target(), Meta(index, size=(4, 4)))


@pytest.fixture(autouse=True)
def closed():
    yield
    close_loaders()


def loader(dataset, workers: int):
    section = dict(batch_size=2, num_workers=workers)
    return evaluation_loader(section, dataset, seed=0, rank=0, world_size=1, pin_memory=False)


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_arrive_as_what_they_are(workers):
    with pytest.raises(DataError, match='bad label') as caught:
        list(loader(ImageDataset(broken=3), workers))
    assert (caught.value.where, caught.value.fix) == ('labels/3.png', 'mend it')


def test_a_killed_worker_is_explained():
    with pytest.raises(ResourceError, match='worker died') as caught:
        list(loader(ImageDataset(deadly=3), 1))
    assert '--workers 0' in caught.value.fix


def test_every_image_once_and_workers_end():
    created = loader(ImageDataset(), 1)
    recorded = [meta.image_id for batch in created for meta in batch.metas]
    assert recorded == list(range(8))
    workers = created._iterator._workers
    assert all(worker.is_alive() for worker in workers)  # kept for the next validation
    os.kill(workers[0].pid, signal.SIGTERM)  # a stop of the whole process group is the main process's business
    assert [meta.image_id for batch in created for meta in batch.metas] == recorded
    close_loaders()
    assert not any(worker.is_alive() for worker in workers)


def test_a_loader_can_start_in_the_middle():
    section = dict(batch_size=2, num_workers=0)
    batches = []
    for start in (0, 6):
        created = train_loader(section, ImageDataset(), seed=0, rank=0, world_size=1, start=start, pin_memory=False)
        iterator = iter(created)
        batches.append([[meta.image_id for meta in next(iterator).metas] for _ in range(8 - start // 2)])
    assert batches[0][3:] == batches[1]


def test_data_sets_must_agree_on_classes():
    first = ImageDataset().metainfo
    check_classes(first, ImageDataset().metainfo, where='x')
    check_classes(first, {'classes': {'labels': ['z']}}, where='x')
    with pytest.raises(ConfigError) as caught:
        check_classes(first, ImageDataset(classes=('a', 'c')).metainfo, where='x')
    assert "class 1: 'b' against 'c'" in caught.value.why
    with pytest.raises(ConfigError, match='not the same'):
        check_classes(first, ImageDataset(classes=('a',)).metainfo, where='x')


def test_threads_share_the_processors(tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert torch_threads(0) == cpu_count() and torch_threads(10**6) == 1
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert torch_threads(0) == 3
    assert _cgroup_quota(tmp_path) is None
    (tmp_path / 'cpu.max').write_text('150000 100000\n')
    assert _cgroup_quota(tmp_path) == 1.5
    (tmp_path / 'cpu.max').write_text('max 100000\n')
    assert _cgroup_quota(tmp_path) is None


def test_precision_is_said():
    cpu = torch.device('cpu')
    assert choose_precision('off', cpu).dtype is None
    assert choose_precision('bf16', cpu) == ('bf16', torch.bfloat16, False, 'bfloat16 (as requested)')
    assert choose_precision('auto', cpu).dtype in (None, torch.bfloat16)
    with pytest.raises(ConfigError, match='float16 cannot train on cpu'):
        choose_precision('fp16', cpu)
