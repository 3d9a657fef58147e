"""Loader workers: batches arrive or fail, and nothing waits for ever."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

from vitdense.data.files.images import UnreadableImage
from vitdense.errors import DataError, ResourceError
from vitdense.loading import workers as workers_module
from vitdense.loading.loaders import close_loaders, evaluation_loader
from vitdense.loading.workers import bytes_in, workers_that_fit
from vitdense.train.preemption import Interrupted, interruptible, obey_signals
from vitdense.types import Meta, Sample, Target


class Images:
    """Eight images, with something that happens when one of them is read."""

    metainfo: dict = {'classes': {'semantic': ['a', 'b']}}

    def __init__(self, happens=lambda index: None) -> None:
        self.happens = happens

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        extra = self.happens(index)
        meta = Meta(index, size=(4, 4), path=extra or '')
        return Sample(torch.full((3, 4, 4), index, dtype=torch.uint8), Target(), meta)


@pytest.fixture(autouse=True)
def closed():
    yield
    close_loaders()


def loader(dataset, workers: int = 1, **options):
    section = dict(batch_size=2, num_workers=workers)
    return evaluation_loader(section, dataset, seed=0, rank=0, world_size=1, pin_memory=False, **options)


def ids(batches) -> list[int]:
    return [meta.image_id for batch in batches for meta in batch.metas]


def test_a_worker_that_dies_anywhere_is_found_at_the_next_batch(monkeypatch):
    monkeypatch.setattr('vitdense.loading.loaders.cpu_count', lambda: 2)
    created = loader(Images(), workers=2)
    batches = iter(created)
    next(batches)
    victim = created._iterator._workers[1]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(timeout=5)
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:  # the main process computes, and nothing is raised there
        torch.ones(8, 8) @ torch.ones(8, 8)
    with pytest.raises(ResourceError, match='worker died') as caught:
        list(batches)
    assert 'worker 1 was killed by SIGKILL' in caught.value.why and '--workers 0' in caught.value.fix
    others = created._iterator._workers
    close_loaders()
    assert not any(worker.is_alive() for worker in others)


def test_a_worker_that_died_between_two_validations_is_found(monkeypatch):
    created = loader(Images())
    assert ids(created) == list(range(8))
    created._iterator._workers[0].kill()
    created._iterator._workers[0].join()
    with pytest.raises(ResourceError, match='worker died'):
        list(created)


def test_the_handler_for_dead_children_is_the_one_from_before():
    before = signal.getsignal(signal.SIGCHLD)
    mine = signal.signal(signal.SIGCHLD, lambda number, frame: None)
    try:
        handler = signal.getsignal(signal.SIGCHLD)
        next(iter(loader(Images())))
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, mine if before is None else before)


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        ('unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)', '/dev/shm'),
        ('unable to open shared memory object </torch_1>: Too many open files (24)', 'ulimit'),
    ],
)
def test_a_batch_that_cannot_be_sent_is_an_error(monkeypatch, message, expected):
    class Full:
        @staticmethod
        def dumps(batch):
            raise RuntimeError(message)

    monkeypatch.setattr(workers_module, 'ForkingPickler', Full)
    with pytest.raises(ResourceError, match='cannot send') as caught:
        list(loader(Images()))
    assert expected in caught.value.why + caught.value.fix and '--workers' in caught.value.fix


def test_a_sample_that_cannot_be_pickled_is_an_error_and_no_wait():
    with pytest.raises(ResourceError, match='cannot send'):
        list(loader(Images(lambda index: lambda: index)))


@pytest.mark.parametrize(('free', 'fitting'), [(10**5, 0), (2 * 10**7, 1), (10**9, 4), (8 * 2**30, 4), (None, 4)])
def test_workers_are_as_many_as_the_shared_memory_holds(monkeypatch, caplog, free, fitting):
    import logging

    logging.getLogger('vitdense').propagate = True
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    monkeypatch.setattr(workers_module, 'shared_memory_free', lambda: free)
    sample = Sample(torch.zeros(3, 512, 512, dtype=torch.uint8), Target(semantic=torch.zeros(512, 512)), Meta(0))
    assert bytes_in(sample) == 3 * 512**2 + 4 * 512**2
    assert workers_that_fit(4, 2, lambda: sample, share=1.0) == fitting
    assert ('/dev/shm has' in caplog.text) == (fitting < 4)
    assert workers_that_fit(0, 2, lambda: pytest.fail('nothing to count'), share=1.0) == 0


@pytest.mark.parametrize('workers', [0, 1])
def test_a_stop_does_not_wait_for_data(workers):
    def block(index: int) -> None:
        if index == 4:
            time.sleep(60)

    created = loader(Images(block), workers=workers)
    batches = interruptible(created)
    with obey_signals() as request:
        assert ids([next(batches), next(batches)]) == [0, 1, 2, 3]
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        start = time.monotonic()
        with pytest.raises(Interrupted):
            next(batches)
        assert request.signal == signal.SIGTERM and time.monotonic() - start < 10
        timer.join()
    close_loaders()  # it does not wait either
    assert time.monotonic() - start < 10


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_images_are_left_out_where_that_is_wanted(workers):
    def broken(index: int) -> None:
        if index in (3, 6, 7):
            raise UnreadableImage('cannot be opened', where=f'{index}.png', why='truncated', fix='copy it again')

    with pytest.raises(UnreadableImage) as caught:
        list(loader(Images(broken), workers=workers))
    assert '--skip-bad-eval' in caught.value.fix and 'copy it again' in caught.value.fix
    created = loader(Images(broken), workers=workers, skip_bad=True)
    for _ in range(2):  # a second validation finds the same ones
        batches = list(created)
        assert [None if batch is None else ids([batch]) for batch in batches] == [[0, 1], [2], [4, 5], None]
        assert created.dataset.num_bad == 3


def test_wrong_labels_are_an_error_all_the_same():
    def wrong(index: int) -> None:
        if index == 5:
            raise DataError('bad label', where='5.png', why='it holds 7', fix='mend it')

    with pytest.raises(DataError, match='bad label'):
        list(loader(Images(wrong), skip_bad=True))
