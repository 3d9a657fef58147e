"""Reads mutated inputs of one family in a process of its own and reports each on a pipe.

    python tests/fuzz/process.py FAMILY START STOP FOLDER

Input number k is a function of (family, k), so START = k, STOP = k + 1 repeats it, with its traceback on stderr.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 8 * 2**30  # bytes of data that the process may allocate
PROCESSES = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'pty.spawn')
NETWORK = ('socket.connect', 'socket.getaddrinfo', 'socket.sendto')


def writes_outside(path: object, mode: object, flags: int, allowed: tuple[str, ...]) -> bool:
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(writes) and isinstance(path, str) and not os.path.realpath(path).startswith(allowed)


def watch(folder: Path, events: list[str]) -> None:
    """Append to `events` the processes, connections, and files opened for writing outside of `folder`."""
    allowed = (str(folder), tempfile.gettempdir(), os.devnull)

    def hook(event: str, arguments: tuple) -> None:
        if event in PROCESSES or event in NETWORK:
            events.append(f'{event} {arguments!r:.200}')
        elif event == 'open' and writes_outside(*arguments, allowed):
            events.append(f'written: {arguments[0]}')

    sys.addaudithook(hook)


def location_of(error: BaseException) -> str:
    """Return the innermost place inside of the package that an error passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if '/vitdense/' in frame.filename]
    return f'{frames[-1].filename.rpartition("vitdense/")[2]}:{frames[-1].lineno}' if frames else 'outside'


def outcome(family, number: int, events: list[str]) -> str:
    """Read input `number` and return 'read', 'refused', or what went wrong."""
    from vitdense.errors import VitDenseError

    events.clear()
    try:
        family.run(Random(f'{type(family).__name__} {number}'))
        result = 'read'
    except VitDenseError:
        result = 'refused'
    except BaseException as error:  # the finding that this program looks for
        traceback.print_exc()
        result = f'raw {type(error).__name__} at {location_of(error)}: {str(error)[:150]!r}'
    if family.marker.exists():
        family.marker.unlink()
        result = 'executed: the marker file was written'
    return f'forbidden: {events[0]}' if events else result


def main() -> None:
    name, start, stop, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    report = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # as `run` of the commands does
    sys.path.insert(0, str(ROOT))
    os.environ['VITDENSE_CACHE'] = str(folder / 'cache')
    import torch

    from tests.fuzz.families import BY_NAME

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    events: list[str] = []
    family = BY_NAME[name](folder)
    watch(folder, events)
    for number in range(start, stop):
        print('start', number, file=report)
        print('end', number, outcome(family, number, events).replace('\n', ' '), file=report)


if __name__ == '__main__':
    main()
