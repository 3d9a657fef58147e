"""Mutation testing: change one operator, number or word of the code at a time, and see whether its tests notice.

    python benchmarks/mutation.py --count 150 --seed 0
    python benchmarks/mutation.py --only tasks/matching.py --count 40

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
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TASKS = ['tests/tasks/test_detection.py', 'tests/tasks/test_detection_losses.py']
TASKS += ['tests/tasks/test_losses_transformers.py', 'tests/tasks/test_matching.py', 'tests/tasks/test_denoising.py']
MASKS = ['tests/tasks/test_mask_classification.py', 'tests/tasks/test_mask_classification_transformers.py']
MASKS += ['tests/networks/test_eomt_transformers.py', 'tests/ops/test_mask_points.py']
PARALLEL = {'tests/tasks/test_losses.py'}  # whose tests of several processes run too
RECIPE = 'tests/recipes/test_recipes.py::test_a_config_follows_its_published_recipe'
TESTS = {  # file of the package, or config -> its tests
    'vitdense/tasks/losses.py': ['tests/tasks/test_losses.py'],
    'vitdense/tasks/detection_losses.py': TASKS[1:3],
    'vitdense/tasks/detection.py': TASKS,
    'vitdense/tasks/denoising.py': TASKS[:1] + TASKS[2:3] + TASKS[4:],
    'vitdense/tasks/matching.py': [TASKS[3], *TASKS[:3]],
    'vitdense/tasks/mask_losses.py': MASKS,
    'vitdense/tasks/mask_matching.py': MASKS,
    'vitdense/tasks/mask_classification.py': MASKS,
    'vitdense/tasks/semantic.py': ['tests/tasks/test_semantic.py', 'tests/heads/test_losses_transformers.py'],
    'vitdense/tasks/classification.py': ['tests/tasks/test_classification.py'],
    'vitdense/tasks/reconstruction.py': ['tests/networks/test_mae.py'],
    'vitdense/ops/boxes.py': ['tests/ops/test_boxes.py', *TASKS[:2]],
    'vitdense/ops/masks.py': [
        *MASKS[3:],
        *MASKS[:3],
        'tests/ops/test_many_masks.py',
        'tests/data/coco/test_odd_files.py',
    ],
    'vitdense/ops/mask_labels.py': MASKS,
    'vitdense/ops/mixing.py': ['tests/ops/test_mixing.py'],
    'vitdense/train/schedule.py': ['tests/train/test_schedule.py'],
    'vitdense/train/mask_annealing.py': ['tests/train/test_mask_annealing.py'],
    'vitdense/train/optim.py': ['tests/train/test_optim.py', f'{RECIPE}[detection/dino_simple_mae_b_coco_800_12ep]'],
    'vitdense/data/transforms/common.py': [
        'tests/data/transforms/test_common.py',
        'tests/data/transforms/test_numbers.py',
        f'{RECIPE}[semantic/linear_plain_dinov2_b_ade20k_512_40k]',
    ],
    'vitdense/data/transforms/detection.py': [
        'tests/data/transforms/test_detection.py',
        'tests/data/transforms/test_common.py',
    ],
    'vitdense/data/transforms/geometry.py': [
        f'tests/data/transforms/test_{name}.py' for name in ('common', 'numbers', 'detection')
    ],
    'vitdense/data/transforms/evaluation_crop.py': ['tests/data/transforms/test_evaluation_crop.py'],
    'vitdense/metrics/miou.py': ['tests/metrics/test_miou.py'],
    'vitdense/metrics/accuracy.py': ['tests/metrics/test_accuracy.py'],
    'vitdense/metrics/multilabel.py': ['tests/metrics/test_accuracy.py'],
    'vitdense/metrics/average_precision.py': ['tests/metrics/test_average_precision.py'],
    'vitdense/metrics/coco_curves.py': ['tests/metrics/test_average_precision.py'],
    'configs/_base_/dino.py': [f'{RECIPE}[detection/dino_simple_mae_b_coco_800_12ep]'],
    'configs/_base_/eomt.py': [f'{RECIPE}[semantic/eomt_plain_dinov2_l_ade20k_512_40k]'],
    'configs/_base_/upernet.py': [f'{RECIPE}[semantic/upernet_layers4_mae_b_ade20k_512_160k]'],
    'configs/_base_/real_time_detr.py': [f'{RECIPE}[detection/real_time_projector_dinov2_s_coco_512_100ep]'],
    'configs/_base_/class_finetuned.py': [f'{RECIPE}[classification/class_finetuned_mae_b_imagenet_224_100ep]'],
    'configs/_base_/mae.py': [f'{RECIPE}[pretraining/mae_vit_{size}_imagenet_224_800ep]' for size in 'bl'],
    'configs/_base_/datasets/ade20k.py': [f'{RECIPE}[semantic/linear_plain_dinov2_b_ade20k_512_40k]'],
}
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
# Limits of what is read, numbers that say how much is worked on together, or mark what is worse than every cost
FREE = ('FARTHEST', 'MOST_POINTS', 'MOST_PIXELS', '_AT_A_TIME', 'MASKS_AT_A_TIME', '_LARGEST', '_WORST', '_CROWD')
FREE += ('STRIPE',)
EQUIVALENT = [  # a part of a line, what of it changes ('': anything), and why no result shows it
    ("choice == 'fast'", '', 'both engines count the same'),
    ('if len(used) > 1 else', '', 'a choice among one is that one'),
    ('true.sum(-1, keepdim=True) > 0', 'true.sum', 'a mean is above zero where the sum is'),
    ('(boxes_cxcywh - wanted_cxcywh).abs().sum(-1)', '-1', 'all of it is added up in the end, in whichever order'),
    ('torch.autocast(', '', 'on a CPU autocast changes none of these operations'),
    ("meta.path or f'image", '', 'the place that a message names'),
    ('max(truth.counts, default=0)', '0', 'a batch has an image'),
    ('else np.zeros(0', 'np.zeros', 'an array of nothing'),
    ('(logits.float().nan_to_num() * 0).sum((0, 2, 3))', '0', 'it becomes a plane of no pixels'),
    ('last = max((number for number in ids', '0', 'every number above all ids stands behind them'),
    ('last = max((number for number in ids', '1', 'every number above all ids stands behind them'),
    (
        'np.unique(found.image * num_categories',
        'found.image * num_categories + found.category',
        'classes lie below their number: no two are one',
    ),
    ('set(map(type, counts)) <= {int}', 'set(map(type, counts)) <= {int}', 'the long way gives the same whole numbers'),
    ('torch.zeros(0,', 'torch.zeros', 'a tensor of nothing'),
    ('return torch.zeros((1, 0, 0)', 'torch.zeros', 'a tensor of nothing'),
    ('else np.zeros((0, 4))', 'np.zeros', 'an array of nothing'),
    ('self._calibration = torch.zeros(3, bins', '', 'every evaluation sets it before it is read'),
    ('self._five = 0', '', 'every evaluation sets it before it is read'),
    ('else truth.new_zeros(0, 1)', '', 'a comparison with nothing is nothing, whatever its other side'),
    ('val_interval or 1)):', '1', 'every number from 1 on passes the check'),
    ('return 1.0 if progress < begin else', 'progress < begin', 'a power of 1 is 1'),
    (
        "mode='nearest-exact')[0] > 0.5",
        "_original(plane, meta, mode='nearest-exact')[0] > 0.5",
        'the plane holds 0 and 1',
    ),
    ('kept = range(needed + (side - needed) % 2', 'side - needed', 'even where the sum is'),
    ('(n * short // shortest - whole) % 2', 'n * short // shortest - whole', 'even where the sum is'),
    ('(logits.float().nan_to_num() * 0).sum', '(logits.float().nan_to_num() * 0).sum', 'a mean of zeros is zero'),
    ('(logits.nan_to_num() * 0).sum', '(logits.nan_to_num() * 0).sum', 'a mean of zeros is zero'),
    (
        '[rows.clamp(min=-1)].where(rows >= 0',
        '1',
        'who has no object reads the last row, whichever it is, and drops it',
    ),
    ('torch.cat([boxes, boxes.new_full((1, 4)', '1', 'only the last of these rows is read'),
    ('torch.cat([boxes, boxes.new_full((1, 4)', '0.5', 'boxes of queries without an object cost nothing'),
    ('else truth.labels[:0]', '0', 'the costs of no object are none'),
    ('IGNORED = -2', '2', 'a name for any number below NOTHING'),
    ('alpha = -1 if self.alpha is None', '1', 'every negative number leaves it out'),
    ('easy = 2.0', '2.0', 'every number above 1 is above every probability'),
    ('labels = torch.zeros((batch, length)', 'torch.zeros', 'labels of filler become 0 in the end'),
]
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
    found = []
    for node, change, undo in _changes(tree, config=file.startswith('configs')):
        before = ast.unparse(node)
        change()
        after = ast.unparse(node)
        line = text.splitlines()[node.lineno - 1]
        same = any(part in line and what in ('', before) for part, what, _ in EQUIVALENT)
        if before != after and not same:
            found.append(Mutant(file, node.lineno, before, after, ast.unparse(tree)))
        undo()
    return found


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


def drawn(files: Sequence[str], count: int, seed: int) -> list[Mutant]:
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
    found = []
    for line in lines:
        place, _, change = line.partition(' SURVIVED ')[2].partition(': ')
        file, _, number = place.rpartition(':')
        same = [each for each in pools[file] if f'{each.before} -> {each.after}' == change]
        found += sorted(same, key=lambda each: abs(each.line - int(number)))[:1]
    return found


def noticed(mutant: Mutant, folder: Path) -> bool:
    """Run the tests of a mutant in a process of its own; return whether they fail."""
    target = folder / mutant.file
    original = target.read_text(encoding='utf-8')
    target.write_text(mutant.source, encoding='utf-8')
    try:
        return _run(TESTS[mutant.file], folder) != 0
    finally:
        target.write_text(original, encoding='utf-8')


def _run(tests: Sequence[str], folder: Path) -> int:
    """Return the exit status of pytest in a child of this process, which has torch loaded already."""
    child = os.fork()
    if not child:
        os.setpgrp()
        os.chdir(folder)
        sys.path[:0] = [str(folder)]
        with open(os.devnull, 'w') as nothing:
            os.dup2(nothing.fileno(), 1), os.dup2(nothing.fileno(), 2)
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
    parser.add_argument('--again', help='a log of this script: only the mutants that survived there')
    options = parser.parse_args(arguments)
    files = [file for file in TESTS if options.only in file]
    mutants = survivors_of(options.again) if options.again else drawn(files, options.count, options.seed)
    preload()
    survivors = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / 'project'
        ignored = shutil.ignore_patterns('.git', '__pycache__', 'work_dirs', '*.egg-info')
        shutil.copytree(ROOT, folder, ignore=ignored)
        sys.dont_write_bytecode = True
        for file in sorted({mutant.file for mutant in mutants}):
            if _run(TESTS[file], folder):
                sys.exit(f'the tests of {file} fail without any change: {" ".join(TESTS[file])}')
        for number, mutant in enumerate(mutants, start=1):
            seen = noticed(mutant, folder)
            survivors += [] if seen else [mutant]
            what = 'noticed ' if seen else 'SURVIVED'
            print(
                f'{number}/{len(mutants)} {what} {mutant.file}:{mutant.line}: {mutant.before} -> {mutant.after}',
                flush=True,
            )
    share = 1 - len(survivors) / max(len(mutants), 1)
    print(f'{len(mutants) - len(survivors)} of {len(mutants)} mutants noticed: {share:.1%}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
