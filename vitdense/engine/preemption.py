"""Stopping a run from outside: the first SIGTERM or Ctrl-C saves and leaves, the second leaves at once."""

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


class StopRequest:
    """What the handlers of the signals wrote down."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that asks to stop; 0: nobody does
        self.save = False  # SIGUSR1: save and go on

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the request; the second one ends the process on the spot."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    def ask_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True


@contextmanager
def obey_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into requests while the block runs (in the main thread only)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {signal.SIGTERM: request.ask, signal.SIGINT: request.ask}
    if hasattr(signal, 'SIGUSR1'):
        handlers[signal.SIGUSR1] = request.ask_save
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

    All ranks agree: the request of one is the request of all.
    """

    priority = 'LOWEST'

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def after_step(self, runner: Any) -> None:
        self._look(runner)

    def before_validation(self, runner: Any) -> None:
        self._look(runner)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_world_size() == 1:  # ranks have different numbers of validation batches and must not wait for each other
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
        if runner.saving.saved_step != runner.train_loop.iter or runner.train_loop.validation_pending:
            runner.saving.save(runner)
        if number:
            logger.warning(
                '%s: saved at step %d, leaving; --resume goes on', signal.Signals(number).name, runner.train_loop.iter
            )
            raise SystemExit(128 + number)
