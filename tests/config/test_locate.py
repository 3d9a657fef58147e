"""A config in the user's own folder starts from those of the package, wherever an installation has put them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINE = """
import math
from os.path import join
from mmengine.config import read_base

with read_base():
    from vitdense.configs.quickstart.shapes_segmentation import *

work_dir = join('a', 'b')
val_dataloader.dataset.update(num_images=math.floor(7.5))
"""
CODE = """
import sys
sys.modules['pkg_resources'] = None  # as with setuptools 82
from pathlib import Path
from vitdense.config import locate
cfg = locate.read_config(Path('mine.py'), ('val_dataloader', 'test_dataloader'))
print(locate.__file__, cfg['val_dataloader']['dataset']['num_images'], cfg['work_dir'], cfg['model']['type'])
"""


def copied(tmp_path: Path) -> dict[str, str]:
    """Lay the package out as a wheel installs it: one folder, configs and tools within."""
    site = tmp_path / 'site' / 'vitdense'
    shutil.copytree(ROOT / 'vitdense', site, ignore=shutil.ignore_patterns('__pycache__'))
    for part in ('configs', 'tools'):
        shutil.copytree(ROOT / part, site / part, ignore=shutil.ignore_patterns('__pycache__'))
    return {'PYTHONPATH': str(site.parent)}


@pytest.mark.parametrize('layout', ['wheel', 'editable'])
def test_a_config_elsewhere_starts_from_one_of_the_package(layout, tmp_path):
    more = copied(tmp_path) if layout == 'wheel' else {'PYTHONPATH': ''}
    folder = tmp_path / 'my configs'
    folder.mkdir()
    (folder / 'mine.py').write_text(MINE)
    run = [sys.executable, '-c', CODE]
    done = subprocess.run(run, cwd=folder, env={**os.environ, **more}, capture_output=True, text=True, timeout=300)
    if layout == 'editable' and "No module named 'vitdense'" in done.stderr:
        pytest.skip('vitdense is not installed here')
    assert done.returncode == 0, done.stderr
    location, number, work_dir, kind = done.stdout.split()
    assert (number, work_dir, kind) == ('7', 'a/b', 'vitdense.model.DenseModel')
    assert Path(location).is_relative_to(tmp_path if layout == 'wheel' else '/')
