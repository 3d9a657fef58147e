"""Paired timing: two ways of doing the same work, in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """How much faster `b` is than `a`, over paired rounds."""

    median: float  # median over rounds of (seconds of a) / (seconds of b); above 1, b is faster
    low: float  # smallest ratio of a round
    high: float  # largest ratio of a round
    seconds_a: float  # median seconds of one call of a
    seconds_b: float  # median seconds of one call of b

    def __str__(self) -> str:
        return (
            f'{self.median:.2f}x ({self.low:.2f} - {self.high:.2f}), '
            f'{self.seconds_a * 1e3:.4g} ms -> {self.seconds_b * 1e3:.4g} ms'
        )


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int = 7,
    *,
    calls: int = 1,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Time `a` (the peer) and `b` (ours) in turn for `rounds` rounds of `calls` calls each, after `warmup` calls.

    A round runs both, and the order changes from round to round, so a machine that slows down or is shared slows both.
    On a GPU the callables must wait for the device themselves. `clock` may be `time.thread_time`, the processor time of
    work on one thread, which other programs do not add to.
    """
    for _ in range(warmup):
        a(), b()
    times: dict[Callable, list[float]] = {a: [], b: []}
    for number in range(rounds):
        for work in (a, b) if number % 2 == 0 else (b, a):
            start = clock()
            for _ in range(calls):
                work()
            times[work].append((clock() - start) / calls)
    ratios = [peer / ours for peer, ours in zip(times[a], times[b], strict=True)]
    return Ratio(
        statistics.median(ratios), min(ratios), max(ratios), statistics.median(times[a]), statistics.median(times[b])
    )
