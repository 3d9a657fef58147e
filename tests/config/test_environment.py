"""A user without an entry in the system, as in `docker run --user 12345`, has neither a home folder nor a name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitdense.errors import DiskError
from vitdense.probing.feature_cache import check_writable

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = """
import pwd
def no_entry(number):
    raise KeyError(f'getpwuid(): uid not found: {number}')
pwd.getpwuid = no_entry
"""


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    kept = {name: os.environ[name] for name in ('PATH', 'LD_LIBRARY_PATH') if name in os.environ}
    variables = {**kept, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **variables}
    return subprocess.run(
        [sys.executable, '-c', UNKNOWN + code], cwd=folder, env=variables, capture_output=True, text=True
    )


@pytest.mark.faults
def test_without_home_and_name_nothing_fails_and_nothing_is_cached(tmp_path):
    code = """
import getpass, os
assert os.path.expanduser('~') == '~'
import vitdense
import yapf  # as mmengine does
from vitdense.metrics.confusion import write_confusion
import numpy as np
write_confusion(np.eye(2), ['a', 'b'], 'out')
print(getpass.getuser() == f'uid{os.getuid()}', os.path.expanduser('~/.cache'))
"""
    done = python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout == f'True {os.devnull}/home/.cache\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out']  # and no folder that is called ~


@pytest.mark.faults
def test_a_home_that_exists_is_left_as_it_is(tmp_path):
    code = "import os, vitdense; print(os.environ.get('HOME'), os.environ.get('USER'))"
    done = python(code, tmp_path, HOME=str(tmp_path), USER='me')
    assert done.stdout == f'{tmp_path} me\n'


@pytest.mark.faults
def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DiskError, match='the features cannot be written') as caught:
        check_writable(tmp_path / 'file' / 'features')
    assert 'VITDENSE_CACHE=DIR' in caught.value.fix
    check_writable(tmp_path / 'new' / 'features')
    assert list((tmp_path / 'new' / 'features').iterdir()) == []
