"""Mutation testing: change one operator, number or word of the code at a time, and run its tests.

    python benchmarks/mutation.py --count 150 --seed 0
    python benchmarks/mutation.py --only tasks/matching.py --count 40 --jobs 4

Each mutant is a copy of the project with one changed file, and runs only the tests of that file, in a process of its
own, up to the first failure; most tests of several processes are left out. A mutant that survives is printed with its
line; the last line is the share of those that were noticed. The same `--seed` draws the same mutants. Needs what the
tests need; about three seconds for each mutant on one core.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from mutation_tables import EQUIVALENT, FREE, PARALLEL, TESTS

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or,
    ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
WORDS = {'min': 'max', 'max': 'min', 'amax': 'amin', 'amin': 'amax', 'sum': 'mean', 'mean': 'sum', 'any': 'all'}
WORDS |= {'all': 'any', 'ceil': 'floor', 'floor': 'ceil', 'argmax': 'argmin', 'zeros': 'ones', 'ones': 'zeros'}
# Words of messages, checks of arguments and drawings: what they say is tested elsewhere, or changes no number
SKIPPED = (
    'check_',
    '_check',
    'ConfigError',
    'DataError',
    'NumericsError',
    'logger',
    '_report',
    '_draw',
    'did_you_mean',
)
CONFIG_SKIPPED = ('num_workers', 'val_interval', 'interval', 'keep', 'batch_size')  # no result depends on them
SECONDS = 300  # a mutant that hangs is noticed


class Mutant(NamedTuple):
    """One change of one file."""

    file: str
    line: int
    before: str
    after: str
    source: str  # of the whole file


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Return all mutants of a source text."""
    tree = ast.parse(text)
    actual = []
    for node, change, undo in _changes(tree, config=file.startswith('configs')):
        before = ast.unparse(node)
        change()
        after = ast.unparse(node)
        line = text.splitlines()[node.lineno - 1]
        same = any(part in line and what in ('', before) for part, what, _ in EQUIVALENT)
        if before != after and not same:
            actual.append(Mutant(file, node.lineno, before, after, ast.unparse(tree)))
        undo()
    return actual


def _changes(tree: ast.AST, *, config: bool) -> Iterator[tuple]:
    """Yield a node to show, and two functions that change it and change it back; of configs numbers only."""
    for node in _walk(tree, config):
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS and not config:
            yield node, *_swap(node, 'op', OPERATORS[type(node.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            yield node, *_swap(node, 'ops', [OPERATORS[type(node.ops[0])](), *node.ops[1:]])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert) and not config:
            yield node, *_swap(node, 'op', ast.UAdd())
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool) and not config:
            yield node, *_swap(node, 'value', not node.value)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, *_swap(node, 'value', node.value * 2 if config and node.value else node.value + 1)
        elif isinstance(node, ast.Attribute) and node.attr in WORDS:
            yield node, *_swap(node, 'attr', WORDS[node.attr])
        elif isinstance(node, ast.Name) and node.id in WORDS and isinstance(node.ctx, ast.Load):
            yield node, *_swap(node, 'id', WORDS[node.id])


def _walk(node: ast.AST, config: bool) -> Iterator[ast.AST]:
    """Yield the nodes that do something: no annotations, docstrings, messages, defaults of checks."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Call) and any(word in ast.unparse(node.func) for word in SKIPPED):
        return
    if isinstance(node, ast.FunctionDef) and any(word in node.name for word in ('_check', '__post_init__', *SKIPPED)):
        return
    if isinstance(node, ast.keyword) and node.arg == 'strict':
        return
    if isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id in FREE for each in node.targets):
        return
    if isinstance(node, ast.keyword) and config and node.arg in CONFIG_SKIPPED:
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ('annotation', 'returns', 'decorator_list', 'type_params'):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, config)


def _swap(node: ast.AST, name: str, new: object) -> tuple:
    old = getattr(node, name)
    return lambda: setattr(node, name, new), lambda: setattr(node, name, old)


def sampled(files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants, as many of each file as it has of all, at least three."""
    generator = random.Random(seed)
    pools = {file: mutants_of(file, (ROOT / file).read_text(encoding='utf-8')) for file in files}
    total = sum(map(len, pools.values()))
    chosen = []
    for pool in pools.values():
        wanted = max(3, round(count * len(pool) / total))
        chosen += generator.sample(pool, min(wanted, len(pool)))
    generator.shuffle(chosen)
    return chosen[:count]


def survivors_of(log: str) -> list[Mutant]:
    """Return the mutants that survived in a log of this script, of the code as it is now."""
    lines = [line for line in Path(log).read_text(encoding='utf-8').splitlines() if ' SURVIVED ' in line]
    pools = {file: mutants_of(file, (ROOT / file).read_text(encoding='utf-8')) for file in TESTS}
    actual = []
    for line in lines:
        location, _, change = line.partition(' SURVIVED ')[2].partition(': ')
        file, _, number = location.rpartition(':')
        same = [each for each in pools[file] if f'{each.before} -> {each.after}' == change]
        actual += sorted(same, key=lambda each: abs(each.line - int(number)))[:1]
    return actual


class Copies:
    """A pool of `jobs` processes, each with a copy of the project in `location`."""

    folder: Path  # of this process

    def __init__(self, location: str, jobs: int) -> None:
        sys.dont_write_bytecode = True
        self.pool = ProcessPoolExecutor(jobs, get_context('fork'), Copies.copy, (location,))

    @staticmethod
    def copy(location: str) -> None:
        Copies.folder = Path(location) / str(os.getpid())
        ignored = shutil.ignore_patterns('.git', '__pycache__', 'work_dirs', '*.egg-info')
        shutil.copytree(ROOT, Copies.folder, ignore=ignored)


def fails(tests: Sequence[str]) -> bool:
    """Return whether tests fail without any change."""
    return _run(tests, Copies.folder) != 0


def noticed(mutant: Mutant) -> tuple[Mutant, bool]:
    """Run the tests of a mutant in a process of its own; return whether they fail."""
    folder = Copies.folder
    target = folder / mutant.file
    original = target.read_text(encoding='utf-8')
    target.write_text(mutant.source, encoding='utf-8')
    try:
        return mutant, _run(TESTS[mutant.file], folder) != 0
    finally:
        target.write_text(original, encoding='utf-8')


def _run(tests: Sequence[str], folder: Path) -> int:
    """Return the exit status of pytest in a child of this process, which has torch loaded already."""
    child = os.fork()
    if not child:
        os.setpgrp()
        os.chdir(folder)
        sys.path[:0] = [str(folder)]
        with open(os.devnull, 'w') as empty:
            os.dup2(empty.fileno(), 1), os.dup2(empty.fileno(), 2)
        import pytest

        options = [] if set(tests) & PARALLEL else ['-k', 'not rank']
        os._exit(int(pytest.main([*tests, '-x', '-q', '-p', 'no:cacheprovider', '--no-header', '--tb=no', *options])))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def preload() -> None:
    """Import what is slow to import, but nothing of the project."""
    import cv2  # noqa: F401
    import mmengine.evaluator
    import mmengine.runner  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision.transforms.v2  # noqa: F401
    import transformers.models.eomt.modeling_eomt
    import transformers.models.lw_detr.modeling_lw_detr
    import transformers.models.mask2former.image_processing_mask2former
    import transformers.models.rf_detr.modeling_rf_detr
    import transformers.models.rt_detr.modeling_rt_detr  # noqa: F401

    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=150, help='number of mutants')
    parser.add_argument('--seed', type=int, default=0, help='which mutants are drawn')
    parser.add_argument('--only', default='', help='a part of the names of the files to change')
    parser.add_argument('--jobs', type=int, default=1, help='mutants at a time')
    parser.add_argument('--again', help='a log of this script: only the mutants that survived there')
    options = parser.parse_args(arguments)
    files = [file for file in TESTS if options.only in file]
    mutants = survivors_of(options.again) if options.again else sampled(files, options.count, options.seed)
    preload()
    survivors = []
    with tempfile.TemporaryDirectory() as location:
        pool = Copies(location, options.jobs).pool
        used = sorted({tuple(TESTS[mutant.file]) for mutant in mutants})
        broken = [' '.join(tests) for tests, failed in zip(used, pool.map(fails, used), strict=True) if failed]
        if broken:
            sys.exit(f'these tests fail without any change: {broken}')
        for number, (mutant, recorded) in enumerate(pool.map(noticed, mutants), start=1):
            survivors += [] if recorded else [mutant]
            what = 'noticed ' if recorded else 'SURVIVED'
            change = f'{mutant.file}:{mutant.line}: {mutant.before} -> {mutant.after}'
            print(f'{number}/{len(mutants)} {what} {change}', flush=True)
        pool.shutdown()
    share = 1 - len(survivors) / max(len(mutants), 1)
    print(f'{len(mutants) - len(survivors)} of {len(mutants)} mutants noticed: {share:.1%}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
