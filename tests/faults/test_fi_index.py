"""Every case of fault injection, FI-01 to FI-30, has a test that can fail."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # cases of parts that have tests of their own
    3: 'tools/test_demo.py::test_bad_files_of_a_folder_are_skipped_and_counted',
    4: 'data/files/test_images.py::test_every_mode_becomes_rgb',
    12: 'tasks/test_losses.py::test_all_ignored_is_exactly_zero_with_zero_gradients',
    13: 'tasks/test_matching.py::test_when_nothing_is_finite_the_error_says_what_diverged',
    14: 'train/test_step.py::test_overflows_are_how_a_loss_scale_is_found',
    18: 'train/test_resume.py::test_an_optimizer_that_cannot_go_on_is_refused',
    25: 'tools/test_demo.py::test_broken_videos',
    26: 'storage/test_weights.py::test_less_than_everything_is_an_error_with_the_share_and_leaves_the_module_alone',
    27: 'metrics/test_average_precision.py::test_no_prediction_is_zero_and_no_object_is_not_available',
}


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_case_has_a_test():
    here = set().union(*map(functions, Path(__file__).parent.glob('test_fi_*.py')))
    cases = {int(match[1]) for name in here if (match := re.match(r'test_fi_(\d+)_', name))}
    assert cases | ELSEWHERE.keys() == set(range(1, 31)) and not cases & ELSEWHERE.keys()
    for location in ELSEWHERE.values():
        file, _, name = location.partition('::')
        assert name in functions(TESTS / file), location
