"""Stopping a run by signals: the first SIGTERM, SIGHUP or Ctrl-C saves and leaves, the second leaves at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import get_world_size

logger = logging.getLogger('vitdense')


class Interrupted(BaseException):
    """A stop was requested while the run waited for data, between two steps. The data may never come."""


class StopRequest:
    """Requests to stop or to save, as signal handlers receive them."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that requests a stop; 0: none did
        self.save = False  # SIGUSR1: save and go on
        self.waiting = False  # for data; a stop does not wait for it
        self.process = os.getpid()  # loader workers inherit the handlers, until they have their own

    def on_stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal to stop; the second one ends the process at once. Raises Interrupted in a wait for data."""
        if os.getpid() != self.process:
            return
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        if self.waiting:
            raise Interrupted

    def on_save(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal to save."""
        self.save = True

    def read(self, device: torch.device) -> tuple[int, bool]:
        """Return (signal, whether to save): the request of one rank is that of all. All ranks call it together."""
        number, save = self.signal, self.save
        if get_world_size() > 1:
            requested = torch.tensor([number, int(save)], device=device)
            torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
            number, save = int(requested[0]), bool(requested[1])
        self.save = False
        return number, save


def leave(number: int, step: int) -> NoReturn:
    """End the process as a signal would, after the run was saved at `step`."""
    logger.warning('%s: saved at step %d, leaving; --resume goes on', signal.Signals(number).name, step)
    raise SystemExit(128 + number)


def fewest_batches(num_batches: int, device: torch.device) -> int:
    """Return the smallest number of batches of any rank: all ranks read requests together after each of these."""
    fewest = torch.tensor(num_batches, device=device)
    if get_world_size() > 1:
        torch.distributed.all_reduce(fewest, torch.distributed.ReduceOp.MIN)
    return int(fewest)


_END = object()
_current: list[StopRequest] = []  # of the current run


@contextmanager
def obey_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT, SIGHUP and SIGUSR1 into requests while the block runs (in the main thread only)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {signal.SIGTERM: request.on_stop, signal.SIGINT: request.on_stop, signal.SIGUSR1: request.on_save}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        handlers[signal.SIGHUP] = request.on_stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _current.append(request)
    try:
        yield request
    finally:
        _current.remove(request)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def waiting_for_data() -> Iterator[None]:
    """Let a request to stop end the block at once, by Interrupted. Ranks of a distributed run only leave together."""
    request = _current[-1] if _current and get_world_size() == 1 else None
    if request is None:
        yield
        return
    try:
        request.waiting = True
        if request.signal:
            raise Interrupted
        yield
    finally:
        request.waiting = False


def interruptible(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader. A stop that is requested while one is awaited raises Interrupted at once."""
    iterator = iter(batches)
    while True:
        with waiting_for_data():
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield batch


@contextmanager
def leave_on_signal() -> Iterator[None]:
    """Leave with 143 on SIGTERM while nothing is there to be saved yet (Ctrl-C raises KeyboardInterrupt by itself)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
