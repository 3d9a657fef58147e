"""Loader workers: batches that arrive or fail, never hang, and what it means when a worker dies."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from vitdense.data.sampling import worker_init
from vitdense.device import shared_memory_free
from vitdense.errors import ResourceError, VitDenseError

logger = logging.getLogger('vitdense')
PLENTY = 4 * 2**30  # bytes of shared memory that are enough in any case
MORE_SHARED_MEMORY = 'give the container more shared memory (docker run --shm-size=2g)'


class PackedBatch:
    """A batch on its way to the main process, pickled by the worker itself; its tensors lie in shared memory.

    The queue between processes pickles in a thread of its own: what fails there is printed, and the batch never comes.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content

    def open(self) -> Any:
        return pickle.loads(self.content)

    def pin_memory(self) -> Any:
        """Return the batch in page-locked memory; called by the loader's thread for that."""
        return pin_memory(self.open())


def pack(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    """Return the batch of `samples`; in a worker packed, or instead of one that cannot be sent, the reason for that."""
    if get_worker_info() is None:
        return collate(samples)
    batch = collate(samples)
    try:
        return PackedBatch(bytes(ForkingPickler.dumps(batch)))
    except Exception as error:  # of the system, or of an object that cannot be pickled
        return PackedBatch(pickle.dumps(_cannot_send(error)))


def _cannot_send(error: Exception) -> ResourceError:
    text = str(error)
    why, fix = text, 'let the data set return tensors, numbers and words only; or try --workers 0'
    if 'Too many open files' in text:
        fix = 'raise the limit (ulimit -n 65536), or try --workers 0'
    elif 'shared memory' in text or 'No space left' in text:
        why, fix = f'shared memory (/dev/shm) is full: {text}', f'try --workers 0, or {MORE_SHARED_MEMORY}'
    where = f'worker {get_worker_info().id} of {get_worker_info().num_workers}'
    return ResourceError('a loader worker cannot send a batch', where=where, why=why, fix=fix)


def start_worker(worker: int) -> None:
    """Leave signals to the main process, which saves and then ends the workers; compute on one thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    worker_init(worker)


@contextmanager
def started_workers() -> Iterator[None]:
    """Around the start of a loader's workers: no handler for dead ones stays, no worker of a failed start lives on.

    torch's handler of SIGCHLD raises wherever the main process is at the moment: in the network, or while saving. Dead
    workers are found by `check_workers` and by the loader itself.
    """
    main = threading.current_thread() is threading.main_thread()
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    except BaseException:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        raise
    finally:
        if main:
            ours = getattr(handler, '__module__', '') != 'torch.utils.data._utils.signal_handling'
            signal.signal(signal.SIGCHLD, handler if ours and handler is not None else signal.SIG_DFL)


def check_workers(workers: Sequence[Any], where: str) -> None:
    """Raise ResourceError when one of the worker processes has ended."""
    for number, worker in enumerate(workers):
        if not worker.is_alive():
            raise _dead(f'worker {number} {_end_of(worker.exitcode)}', where)


@contextmanager
def explained(workers: Callable[[], Sequence[Any]], where: str) -> Iterator[None]:
    """Turn errors of the traffic with worker processes into ResourceError; others pass."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        if workers() and not isinstance(error, RuntimeError):  # a connection breaks before its process is gone
            ended = wait([worker.sentinel for worker in workers()], timeout=2)
            for worker in workers():
                worker.join(timeout=2 if worker.sentinel in ended else 0)
        check_workers(workers(), where)
        text = str(error)
        if 'ancdata' in text or 'Too many open files' in text or getattr(error, 'errno', None) == errno.EMFILE:
            raise ResourceError(
                'too many open files',
                where=where,
                why=text,
                fix='raise the limit (ulimit -n 65536), or try fewer --workers',
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN):
            raise ResourceError(
                'loader workers cannot be started', where=where, why=text, fix='try --workers 0'
            ) from error
        if 'worker' in text and any(word in text for word in ('killed', 'exited')):
            raise _dead(text, where) from error
        raise


def _dead(why: str, where: str) -> ResourceError:
    return ResourceError(
        'a loader worker died',
        where=where,
        why=f'{why}: usually memory, or shared memory (/dev/shm) in a container',
        fix=f'try --workers 0, a smaller batch, or {MORE_SHARED_MEMORY}',
    )


def _end_of(code: int | None) -> str:
    names = {-number: number.name for number in signal.Signals}
    return f'was killed by {names[code]}' if code in names else f'ended with exit code {code}'


def workers_that_fit(workers: int, batch_size: int, draw: Callable[[], Any], *, share: float) -> int:
    """Return how many of `workers` the shared memory has room for; logs where it is not all of them.

    `draw` returns one sample of a batch. A worker has two batches on their way, the main process two at hand. A loader
    may fill `share` of what is free.
    """
    free = shared_memory_free()
    if not workers or free is None or free >= PLENTY:
        return workers
    try:
        size = batch_size * bytes_in(draw())
    except VitDenseError:  # training raises it
        return workers
    available = 0.8 * share * free / int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    fitting = max(0, min(workers, int((available / max(size, 1) - 2) // 2)))
    if fitting < workers:
        logger.warning(
            '/dev/shm has %.0f MB free, too little for %d workers with batches of %.1f MB: %s; %s',
            free / 1e6,
            workers,
            size / 1e6,
            f'{fitting} are used' if fitting else 'the main process loads them',
            MORE_SHARED_MEMORY,
        )
    return fitting


def bytes_in(sample: Any) -> int:
    """Return the bytes of all tensors of a record."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(sample) if isinstance(leaf, Tensor))


def stop(batches: Any) -> None:
    """End the workers of a loader's iterator at once.

    Its own way of ending waits for each of them, and for ever for a lock that a killed one held.
    """
    workers = getattr(batches, '_workers', ())
    if workers:
        batches._shutdown = True
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=5)
    if hasattr(batches, '_pin_memory_thread_done_event'):
        batches._pin_memory_thread_done_event.set()
