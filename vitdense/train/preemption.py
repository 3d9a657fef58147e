"""Stopping a run from outside: the first SIGTERM, SIGHUP or Ctrl-C saves and leaves, the second leaves at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook

logger = logging.getLogger('vitdense')


class Interrupted(BaseException):
    """A stop was requested while the run waited for data, between two steps. The data may never come."""


class StopRequest:
    """What the handlers of the signals wrote down."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that asks to stop; 0: nobody does
        self.save = False  # SIGUSR1: save and go on
        self.waiting = False  # for data; a stop does not wait for it
        self.process = os.getpid()  # loader workers inherit the handlers, until they have their own

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the request; the second one ends the process on the spot. Raises Interrupted out of a wait for data."""
        if os.getpid() != self.process:
            return
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        if self.waiting:
            raise Interrupted

    def ask_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True


_current: list[StopRequest] = []  # that of the run at hand


@contextmanager
def obey_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT, SIGHUP and SIGUSR1 into requests while the block runs (in the main thread only)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {signal.SIGTERM: request.ask, signal.SIGINT: request.ask, signal.SIGUSR1: request.ask_save}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        handlers[signal.SIGHUP] = request.ask
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


class PreemptionHook(Hook):
    """Look at the requests after every step and every validation batch; save, and leave with 128 + signal.

    All ranks agree: the request of one is the request of all. In a validation, where one rank may have a batch more
    than another, they look as often as the rank with the fewest.
    """

    priority = 'LOWEST'

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self._looks = 0  # in a validation

    def interrupted(self, runner: Any) -> None:
        self._look(runner)

    def before_val_epoch(self, runner: Any) -> None:
        looks = torch.tensor(len(runner.val_dataloader), device=runner.device)
        if get_world_size() > 1:
            torch.distributed.all_reduce(looks, torch.distributed.ReduceOp.MIN)
        self._looks = int(looks)

    def after_step(self, runner: Any) -> None:
        self._look(runner)

    def before_validation(self, runner: Any) -> None:
        self._look(runner)

    def after_val_batch(self, runner: Any, batch_idx: int) -> None:
        if batch_idx < self._looks:
            self._look(runner)

    def _look(self, runner: Any) -> None:
        number, save = self.request.signal, self.request.save
        if get_world_size() > 1:
            asked = torch.tensor([number, int(save)], device=runner.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            number, save = int(asked[0]), bool(asked[1])
        if not number and not save:
            return
        self.request.save = False
        runner.saving.save(runner)
        if number:
            logger.warning(
                '%s: saved at step %d, leaving; --resume goes on', signal.Signals(number).name, runner.train_loop.iter
            )
            raise SystemExit(128 + number)
