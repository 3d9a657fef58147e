"""FI-16, FI-17, FI-19 to FI-21: a run may end at any instant, and goes on to the same end, bit by bit.

VITDENSE_KILLS is the number of kills of each kind (0: one at every file operation); the default is 5.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import vitdense.commands.train as training
import vitdense.train.build as building
from tests.faults.runs import CASES, KILLS, Run, as_tool, ended, in_process, killed_after, make_run, traced
from vitdense.checkpoints.model_folder import read_model_folder
from vitdense.checkpoints.run import find_checkpoint, steps_in
from vitdense.train.evaluation import EvaluationLoop
from vitdense.train.trainer import TrainingLoop

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
FINISH = 'model.tmp'  # in the name of the first file operation of `finish`


class Whole(NamedTuple):
    """An uninterrupted run, its file operations, and the seconds that it took."""

    run: Run
    operations: list[str]
    seconds: float


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Callable[[str], Whole]:
    """Return the uninterrupted run of a case."""
    known: dict[str, Whole] = {}

    def of(case: str) -> Whole:
        if case not in known:
            run, start = make_run(case, tmp_path_factory.mktemp('whole'), 'run'), time.monotonic()
            code, operations = traced(run.folder, run.train)
            assert code == 0
            known[case] = Whole(run, operations, time.monotonic() - start)
        return known[case]

    return of


def resumed(run: Run, whole: Whole) -> None:
    """Go on with a run that was cut off, and compare its end."""
    assert ended(in_process(lambda: run.train(resume='auto'))) == 0
    assert run.differs(whole.run) == ''
    assert read_model_folder(run.folder / 'model')
    left = [*run.folder.rglob('*.tmp.*'), *run.folder.glob('*.old.*'), *run.folder.glob('.lock')]
    assert left == [] and len(steps_in(run.folder)) == 2


def chosen(numbers: list[int], count: int) -> list[int]:
    """Return `count` of the numbers at equal distances, all of them for 0."""
    return (
        numbers
        if not count or count >= len(numbers)
        else [numbers[row * len(numbers) // count] for row in range(count)]
    )


@pytest.mark.parametrize('part', ['training', 'finish'])
def test_fi_16_a_kill_at_any_file_operation(whole, tmp_path, part):
    uninterrupted = whole('semantic-0')
    operations = uninterrupted.operations
    first = next(row for row, text in enumerate(operations, 1) if FINISH in text)
    assert len(operations) > first + 10 > 50
    numbers = range(1, first) if part == 'training' else range(first, len(operations) + 1)
    for number in chosen(list(numbers), KILLS):
        run = make_run('semantic-0', tmp_path, f'run{number}')
        code, done = traced(run.folder, run.train, kill_at=number)
        assert code == -9 and len(done) == number
        resumed(run, uninterrupted)
        shutil.rmtree(run.folder)


def test_fi_16_a_kill_while_a_killed_run_is_resumed(whole, tmp_path):
    uninterrupted = whole('semantic-0')
    generator = random.Random(0)
    for number in range(max(KILLS // 5, 1)):
        run = make_run('semantic-0', tmp_path, f'run{number}')
        traced(run.folder, run.train, kill_at=generator.randrange(20, len(uninterrupted.operations)))
        for _ in range(3):
            traced(run.folder, lambda run=run: run.train(resume='auto'), kill_at=generator.randrange(1, 60))
        resumed(run, uninterrupted)


@pytest.mark.parametrize('case', CASES)
def test_fi_16_a_kill_at_a_random_instant(whole, tmp_path, case):
    uninterrupted, killed = whole(case), 0
    generator = random.Random(case)
    for number in range(max(KILLS // len(CASES), 1)):
        run = make_run(case, tmp_path, f'run{number}')
        killed += killed_after(generator.uniform(0.05, 1) * uninterrupted.seconds, run.train) == -9
        resumed(run, uninterrupted)
        shutil.rmtree(run.folder)
    print(f'{case}: {killed} of {number + 1} runs were killed before their end; all ended alike')


def test_fi_16_a_kill_between_the_best_weights_and_the_next_checkpoint(whole, tmp_path):
    uninterrupted = whole('three tasks-0')
    operations = uninterrupted.operations
    best = next(number for number, text in enumerate(operations, 1) if text.startswith('os.rename best.pth.tmp'))
    run = make_run('three tasks-0', tmp_path, 'run')
    assert traced(run.folder, run.train, kill_at=best + 2)[0] == -9
    assert (run.folder / 'best.pth').exists() and steps_in(run.folder)[0].name == 'step_000002.pth'
    resumed(run, uninterrupted)


def test_fi_17_a_flipped_byte_in_the_newest_checkpoint(whole, tmp_path, capfd):
    uninterrupted = whole('semantic-0')
    run = make_run('semantic-0', tmp_path, 'run')
    shutil.copytree(uninterrupted.run.folder, run.folder)
    newest = find_checkpoint(run.folder)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    shutil.rmtree(run.folder / 'model')
    resumed(run, uninterrupted)
    assert f'{newest.name}: checksum mismatch, using step_000004.pth' in capfd.readouterr().out


INTERRUPTIONS: dict[str, tuple[Any, str, int]] = {  # a function, and the number of its call in which a signal comes
    'data building': (building, 'training_data', 1),
    'model building': (building, 'log_query_limits', 1),
    'first step': (TrainingLoop, '_forward', 1),  # of the warm-up
    'step': (TrainingLoop, '_forward', 5),
    'validation': (EvaluationLoop, '_predict', 3),
    'finish': (training, 'save_model_folder', 1),
}


def signalled(monkeypatch, location: str, number: int, signals: tuple[int, ...], function: Callable[[], Any]) -> int:
    """Run `function` in a process that gets signals in call `number` of that at `location`; return its exit code."""
    owner, name, _ = INTERRUPTIONS[location]
    original, calls = getattr(owner, name), []

    def called(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            for each in signals:
                os.kill(os.getpid(), each)
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, called)
        return ended(in_process(as_tool(function)))


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize('location', INTERRUPTIONS)
@pytest.mark.parametrize(('signals', 'code'), [((TERM,), 143), ((TERM, TERM), 143), ((INT,), 130)])
def test_fi_19_a_signal_anywhere(whole, tmp_path, monkeypatch, location, signals, code):
    run = make_run('semantic-0', tmp_path, 'run')
    assert signalled(monkeypatch, location, INTERRUPTIONS[location][2], signals, run.train) == code
    step = {'first step': 1, 'step': 5, 'validation': 6}.get(location)
    if step is not None and len(signals) == 1:
        assert steps_in(run.folder)[0].name == f'step_{step:06d}.pth'
    resumed(run, whole('semantic-0'))


@pytest.mark.parametrize('case', ['semantic-1', 'semantic-4'])
def test_fi_20_the_number_of_workers_does_not_matter(whole, case):
    first, other = whole('semantic-0').run.numbers(), whole(case).run.numbers()
    assert first == other and len({row['loss'] for row in first if 'loss' in row}) == 6


def test_fi_21_a_run_that_is_stopped_twice(whole, tmp_path, monkeypatch):
    run = make_run('three tasks-0', tmp_path, 'run')
    for calls, step in ((1, 1), (3, 4)):  # the second process begins at step 1
        assert signalled(monkeypatch, 'step', calls, (TERM,), lambda: run.train(resume='auto')) == 143
        assert steps_in(run.folder)[0].name == f'step_{step:06d}.pth'
    resumed(run, whole('three tasks-0'))
