"""Concurrent requests as batches of one predictor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from vitdense.errors import VitDenseError
from vitdense.inference.predictor import Predictor
from vitdense.inference.result import Result


class QueueFullError(Exception):
    """The queue of waiting images is full."""


class Batcher:
    """Runs images of concurrent requests through `predictor`, batching those that arrived during the last one.

    A lone image never waits for others. At most `most_waiting` images wait.
    """

    def __init__(self, predictor: Predictor, *, most_waiting: int) -> None:
        self.predictor = predictor
        self.most_waiting = most_waiting
        self._queue: asyncio.Queue[tuple[Tensor, asyncio.Future[Result]]] = asyncio.Queue(max(1, most_waiting))
        self._executor = ThreadPoolExecutor(1, 'predict')
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Batcher:
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._worker is not None
        self._worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._worker
        self._executor.shutdown(cancel_futures=True)

    async def predict(self, img: Tensor, *, wait: bool = False) -> Result:
        """Return the result of a (3, H, W) uint8 image. Raises what the predictor raises, and QueueFullError.

        With `wait` it waits for room in the queue, as frames of a video do whose first results have been sent.
        """
        if not wait and self._queue.qsize() >= self.most_waiting:
            raise QueueFullError
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        await self._queue.put((img, future))
        return await future

    async def _work(self) -> None:
        while True:
            waiting = [await self._queue.get()]
            while len(waiting) < self.predictor.batch_size and not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            await self._run([item for item in waiting if not item[1].done()])  # done: the client has left

    async def _run(self, waiting: Sequence[tuple[Tensor, asyncio.Future[Result]]]) -> None:
        """Set the results of images; where that fails, each image is tried alone."""
        if not waiting:
            return
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self.predictor, [img for img, _ in waiting])
        except (VitDenseError, MemoryError, RuntimeError) as error:
            if len(waiting) > 1:
                for item in waiting:
                    await self._run([item])
            elif not waiting[0][1].done():
                waiting[0][1].set_exception(error)
            return
        for (_, future), result in zip(waiting, results, strict=True):
            if not future.done():
                future.set_result(result)
