"""Command lines to run next, as a person would type them."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path


def tool_command(tool: str, *words: object) -> str:
    """Return the command line that runs another tool, as this one was started: `python tools/test.py ...`, or
    `vitdense test ...`. Words are quoted for a shell.
    """
    script = Path(sys.argv[0])
    spec = importlib.util.find_spec('vitdense.tools')
    folders = [Path(folder).resolve() for folder in spec.submodule_search_locations or ()] if spec else []
    if script.parent.resolve() in folders and script.name != 'cli.py':
        start = [_python(), str(script.with_name(f'{tool}.py'))]
    else:
        name = tool.replace('_', '-')
        start = ['vitdense', name] if shutil.which('vitdense') else [_python(), '-m', 'vitdense.tools.cli', name]
    return shlex.join([*start, *map(str, words)])


def _python() -> str:
    """Return `python` where a shell finds this Python by that name, else its path.

    One environment has several names of its Python, as `bin/python` and `bin/python3`; which of them started this
    process does not matter. Two environments may share the binary behind those names, so the folder is compared.
    """
    on_path = shutil.which('python')
    same = on_path is not None and Path(on_path).parent.resolve() == Path(sys.executable).parent.resolve()
    return 'python' if same else sys.executable
