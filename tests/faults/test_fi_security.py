"""FI-28: import, training, decoders and demo connect to nothing, start no process, and write in their folders only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.odd_images import IMAGES, REJECTED
from tests.tools.test_train import SMALL

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]

WATCH = """
import os, sys
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.chmod', 'os.truncate', 'os.link', 'os.symlink',
           'shutil.rmtree', 'os.utime')
PROCESSES = ('subprocess.Popen', 'os.system', 'os.exec', 'os.spawn', 'os.posix_spawn', 'os.startfile', 'pty.spawn')
found = []

def look(event, arguments):
    if event in PROCESSES or event.startswith('socket.') and event not in ('socket.__new__', 'socket.gethostname'):
        found.append(f'{event} {str(arguments)[:200]}')
    writes = event == 'open' and isinstance(arguments[2], int) and arguments[2] & WRITING
    if (writes or event in CHANGES) and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        inside = path.startswith(os.environ['RUN_FOLDER'] + os.sep)
        at_home = path.startswith(os.environ['HOME'] + os.sep)
        if path != os.devnull and (not inside or at_home):
            found.append(f'{event} {path}')

sys.addaudithook(look)
"""
SCENE = """
import json
from pathlib import Path
import vitdense
from vitdense.data.files.images import read_image
from vitdense.errors import VitDenseError
from vitdense.inference.predictor import Predictor
import vitdense.tools.train as train
import vitdense.tools.demo as demo

train.main([sys.argv[1], '--amp', 'off', '--workers', '0', '--device', 'cpu', '--cfg-options', *sys.argv[2:]])
model = Path('work_dirs/shapes_segmentation/model')
read = []
for path in sorted(Path('files').iterdir()):
    try:
        read_image(path)
        read.append(path.name)
    except VitDenseError:
        pass
code = demo.main(['files', '--model', str(model), '--device', 'cpu', '--out', 'out'])
print(json.dumps(dict(found=found, read=read, code=code)))
"""
PROGRAM = b'%!PS-Adobe-3.0 EPSF-3.0\\n%%BoundingBox: 0 0 9 9\\n(marker) (w) file closefile showpage\\n'


# what libraries do by themselves: torch lists the libraries of the system, matplotlib the fonts; matplotlib and yapf
# (of mmengine) have caches
LIBRARIES = (
    r"subprocess\.Popen \('(/sbin/ldconfig', \['/sbin/ldconfig', '-p'\]|fc-list', \['fc-list', )"
    r'|\S+ \S+/home/\.(cache|config)\b'
)


def watched(scene: str, folder: Path, *arguments: str) -> dict:
    variables = {name: os.environ[name] for name in ('PATH', 'LD_LIBRARY_PATH') if name in os.environ}
    for name in ('tmp', 'home'):
        (folder / name).mkdir(exist_ok=True)
    variables |= dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1', HOME=str(folder / 'home'))
    variables |= dict(RUN_FOLDER=os.path.realpath(folder), TMPDIR=str(folder / 'tmp'))
    command = [sys.executable, '-c', WATCH + scene, *arguments]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_fi_28_nothing_is_connected_started_or_written_elsewhere(tmp_path):
    (tmp_path / 'files').mkdir()
    for name, content in {**REJECTED, **IMAGES}.items():
        (tmp_path / 'files' / name).write_bytes(content)
    for name in ('program.eps', 'program.jpg'):  # formats that run programs
        (tmp_path / 'files' / name).write_bytes(PROGRAM)
    (tmp_path / 'files' / 'video.mp4').write_bytes(b'no video')
    result = watched(SCENE, tmp_path, str(ROOT / 'configs/quickstart/shapes_segmentation.py'), *SMALL)
    assert [event for event in result['found'] if not re.match(LIBRARIES, event)] == []
    assert {path.name for path in (tmp_path / 'home').glob('*/*')} <= {'matplotlib', 'YAPF'}
    assert result['read'] == sorted(IMAGES) and not result['code']
    assert (tmp_path / 'out').is_dir() and not (tmp_path / 'marker').exists()


def test_the_hook_records_what_it_watches_for(tmp_path):
    scene = """
import json, socket, subprocess
for happens in (
    lambda: socket.create_connection(('127.0.0.1', 9)),
    lambda: socket.getaddrinfo('localhost', 80),
    lambda: subprocess.run(['true']),
    lambda: os.system('true'),
    lambda: open('../elsewhere', 'w'),
    lambda: os.mkdir('../folder'),
    lambda: open('home/file', 'w'),
    lambda: open('inside', 'w'),
):
    try:
        happens()
    except OSError:
        pass
print(json.dumps(found))
"""
    (tmp_path / 'run').mkdir()
    events = [event.split()[0] for event in watched(scene, tmp_path / 'run')]
    for name in ('socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.system', 'open', 'os.mkdir'):
        assert name in events
    assert sum(event == 'open' for event in events) == 2  # what lies inside is allowed
