"""Mutated inputs of every kind: an error of ours or a result, within seconds; nothing executed, no process started.

VITDENSE_FUZZ is the number of inputs over all kinds (500); VITDENSE_FUZZ_START the number of the first one of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty, Queue

import psutil
import pytest

from tests.fuzz.families import FAMILIES

PROCESS = Path(__file__).with_name('process.py')
TOTAL, START = (
    int(os.environ.get(name, default)) for name, default in (('VITDENSE_FUZZ', 500), ('VITDENSE_FUZZ_START', 0))
)
SECONDS = 5  # of CPU time for one input
WALL = 120  # seconds for one input on a busy machine, for waits that use no CPU
FIRST = 600  # seconds until the first input: imports, on a busy machine


class Reader:
    """A process that reads the inputs from `start` to `stop` of a family."""

    def __init__(self, family: str, start: int, stop: int, folder: Path) -> None:
        folder.mkdir()
        environment = {**os.environ, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1'}
        with open(folder / 'errors.txt', 'w') as errors:
            command = [sys.executable, str(PROCESS), family, str(start), str(stop), str(folder)]
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=folder
            )
        self.lines: Queue[str] = Queue()
        self.errors = folder / 'errors.txt'
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put('')

    def next(self, seconds: float) -> str | None:
        """Return the next line, '' at the end, None when the input needs more than its time."""
        began, spent, limit = time.monotonic(), self._cpu(), seconds
        while True:
            try:
                return self.lines.get(timeout=0.2)
            except Empty:
                if self._cpu() - spent > limit or time.monotonic() - began > max(WALL, limit):
                    self.process.kill()
                    return None

    def _cpu(self) -> float:
        try:
            times = psutil.Process(self.process.pid).cpu_times()
            return times.user + times.system
        except psutil.Error:
            return 0.0


def outcomes(family: str, start: int, stop: int, folder: Path) -> dict[int, str]:
    """Return what became of each input: read, refused, or a fault; a process that ended is started again after it."""
    results: dict[int, str] = {}
    number = start
    while number < stop:
        reader, current = Reader(family, number, stop, folder / str(number)), None
        while line := reader.next(FIRST if current is None else SECONDS):
            word, current, *rest = line.split(maxsplit=2)
            current = int(current)
            if word == 'end':
                results[current] = rest[0].strip()
        code = reader.process.wait()
        if current is None:
            raise RuntimeError(f'{family} cannot be prepared:\n{reader.errors.read_text()[-3000:]}')
        if current not in results:
            results[current] = f'hang: more than {SECONDS} s' if line is None else f'crash: exit code {code}'
        number = current + 1
    return results


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize('family', [family.__name__ for family in FAMILIES])
def test_mutated_inputs_are_read_or_refused(family, tmp_path):
    stop = START + -(-TOTAL // len(FAMILIES))
    results = outcomes(family, START, stop, tmp_path)
    assert len(results) == stop - START
    faults = {number: text for number, text in results.items() if text not in ('read', 'refused')}
    print(family, dict(Counter(text.split()[0] for text in results.values())))
    kinds = Counter(text for text in faults.values())
    listed = '\n'.join(f'{count} x {text}, such as input {next(k for k, v in faults.items() if v == text)}'
                       for text, count in kinds.most_common(40))  # fmt: skip
    assert not faults, f'{len(faults)} of {len(results)} inputs of {family}:\n{listed}'
