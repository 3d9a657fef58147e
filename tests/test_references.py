"""Every reference in a docstring or comment resolves: to a file of the repository, a module, or a name in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for top in ('vitdense', 'tools', 'configs') for path in (ROOT / top).rglob('*.py'))
OURS = ('vitdense', 'tools', 'docs', 'tests', 'benchmarks')  # a path below configs/ may be one of another repository
PATHS = re.compile(rf'(?<![\w/.-])((?:{"|".join(OURS)})/[\w/.-]*\.(?:py|md|toml))\b')
MODULES = re.compile(r'`(vitdense(?:\.\w+)+)`')


def missing_paths(text: str) -> list[str]:
    """Return the paths of the repository in a text that do not exist."""
    return [path for path in PATHS.findall(text) if not (ROOT / path).exists()]


def missing_names(text: str) -> list[str]:
    """Return the dotted names in backticks that are no module, and no name in one."""
    return [name for name in MODULES.findall(text) if not _exists(name.split('.'))]


def _exists(parts: list[str]) -> bool:
    folder = ROOT.joinpath(*parts)
    if folder.is_dir() or folder.with_suffix('.py').is_file():
        return True
    for end in range(len(parts) - 1, 0, -1):
        file = ROOT.joinpath(*parts[:end])
        source = next((path for path in (file.with_suffix('.py'), file / '__init__.py') if path.is_file()), None)
        if source is not None:
            return re.search(rf'\b{parts[end]}\b', source.read_text(encoding='utf-8')) is not None
    return False


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_references_of_a_file_resolve(path):
    text = path.read_text(encoding='utf-8')
    assert missing_paths(text) == [] and missing_names(text) == []


def test_a_reference_that_leads_nowhere_is_missing():
    assert missing_paths('see vitdense/heads/no_such_head.py and vitdense/types.py') == [
        'vitdense/heads/no_such_head.py'
    ]
    assert missing_names('`vitdense.types.Target`, `vitdense.train` and `vitdense.heads.linear.NoSuchHead`') == [
        'vitdense.heads.linear.NoSuchHead'
    ]
