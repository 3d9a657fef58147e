"""Finding and running of config files.

A config is new-style mmengine Python. mmengine 0.10.7 finds absolute bases (`from vitdense.configs.X import *`) with a
package that setuptools has dropped, and only in a folder of the package; so files are run here, with its parts.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config import utils as mmengine_config
from mmengine.config.lazy import LazyAttr, LazyObject

from vitdense.arguments import check
from vitdense.config.sections import FOLLOWS, Sections, copied, watched
from vitdense.errors import ConfigError, VitDenseError, did_you_mean

_one_at_a_time = threading.Lock()


def find_config(path: str | Path) -> Path:
    """Return the file that `path` names: itself, or the one in the installed `vitdense.configs`."""
    path = Path(path)
    if path.is_file():
        return path
    shipped = shipped_config(path)
    if shipped is not None:
        return shipped
    folders = _config_folders()
    known = [f'configs/{file.relative_to(folder)}' for folder in folders for file in folder.rglob('*.py')]
    beside = [str(file) for file in path.parent.glob('*.py')]
    raise ConfigError(
        f"no config '{path}'{did_you_mean(str(path), [*beside, *known], cutoff=0.8)}",
        where=str(path),
        why='there is no such file, here or among the configs of vitdense',
        fix='check the spelling; run from the folder that the path is relative to',
    )


def shipped_config(path: str | Path) -> Path | None:
    """Return the file of the installed `vitdense.configs` that `path`, with or without `configs/`, names."""
    path = Path(path)
    relative = Path(*path.parts[1:]) if path.parts[:1] == ('configs',) else path
    files = [] if relative.is_absolute() else [folder / relative for folder in _config_folders()]
    return next((file for file in files if file.is_file()), None)


def read_config(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Run the config file and return its top-level names as plain data; `keys` are those that are sections."""
    check(path.suffix == '.py', 'config', str(path), 'configs are Python files', 'give a .py config, as in configs/')
    files: list[str] = []
    try:
        with _lazily():
            content, imported = _run(path, keys, files)
    except VitDenseError:
        raise
    except Exception as error:  # the file is a program: it may fail in any way
        raise ConfigError(
            f"cannot read '{path.name}': {type(error).__name__}",
            where=_error_location(error, files),
            why=str(error) or 'a config must not call imported functions: it holds dicts, numbers and classes at type=',
            fix='correct the line; VITDENSE_DEBUG=1 shows the traceback',
        ) from error
    return {
        key: _plain(value, key, str(path))
        for key, value in content._to_lazy_dict().items()
        if key not in imported and key != 'read_base' and not isinstance(value, ModuleType)  # `import math`
    }


def _run(path: Path, keys: tuple[str, ...], files: list[str]) -> tuple[ConfigDict, set[str]]:
    """Return the names that the file at `path` and its bases define, and which of them are imports.

    `files` is the chain of files that are being read, the config first.
    """
    if str(path) in files:
        raise ConfigError(
            f"'{path.name}' inherits from itself",
            where=' -> '.join([*files, str(path)]),
            why='each of these files starts from the next',
            fix='let one of them start from another file',
        )
    files.append(str(path))
    tree = ast.parse(path.read_text(encoding='utf-8'), str(path))
    names: dict[str, Any] = {'LazyObject': LazyObject, '__file__': str(path)}
    bases, imported = {}, set()
    while modules := Config._get_base_modules(tree.body):  # takes a `with read_base()` out of the file
        for module in modules:
            content, more = _run(_base_file(module, path), keys, files)
            bases[module], imported = _Base(content, module), imported | more
    reader = mmengine_config.ImportTransformer(names, bases, str(path))
    tree, more = mmengine_config._gather_abs_import_lazyobj(reader.visit(tree), str(path))
    sections = Sections(names, keys, str(path))
    exec(compile(watched(tree), str(path), 'exec'), names, names)
    sections.finish()
    files.pop()
    content = {key: value for key, value in names.items() if not key.startswith('__') and key != 'LazyObject'}
    return Config._dict_to_config_dict_lazy(content), imported | reader.imported_obj | more


class _Base(dict):
    """The names that a base defines; its test sections may be those of validation."""

    def __init__(self, content: ConfigDict, module: str) -> None:
        super().__init__(dict.items(content))
        self.module = module

    def __missing__(self, name: str) -> Any:
        if FOLLOWS.get(name) in self:
            return copied(self[FOLLOWS[name]])
        raise ConfigError(
            f"'{self.module}' has no '{name}'{did_you_mean(name, self)}",
            where=f'from {self.module} import {name}',
            why=f'the file defines: {", ".join(self)}',
            fix='import one of them, or *',
        )


def _base_file(module: str, path: Path) -> Path:
    """Return the file of the base that the config at `path` calls `module`, within any package or relative to it.

    Raises ConfigError when there is none.
    """
    name = module.lstrip('.')
    level = len(module) - len(name)
    if level:
        folder = path.absolute().parents[level - 1]
        file = folder.joinpath(*name.split('.')).with_suffix('.py')
        near = [f'{"." * level}{each.stem}' for each in file.parent.glob('*.py')]
    else:
        file, near = _module_file(module), _shipped()
    if file is not None and file.is_file():
        return file
    raise ConfigError(
        f"no config '{module}' to start from{did_you_mean(module, near)}",
        where=f'{path}: from {module} import *',
        why=f'there is no file {file}' if level else 'no such module can be imported',
        fix='name a file beside this one as .NAME, one of a folder above as ..NAME,\n'
        'and one of vitdense as vitdense.configs.FOLDER.NAME',
    )


def _module_file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a parent is missing, or is no package
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _config_folders() -> list[Path]:
    """Return the folders of `vitdense.configs`, wherever this installation has them."""
    spec = importlib.util.find_spec('vitdense.configs')
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _shipped() -> list[str]:
    """Return the configs of vitdense, as modules."""
    files = [file.relative_to(folder).with_suffix('') for folder in _config_folders() for file in folder.rglob('*.py')]
    return ['.'.join(('vitdense.configs', *file.parts)) for file in files]


def _error_location(error: Exception, files: list[str]) -> str:
    """Return `FILE:LINE` of the last place in the files that the error passed through, or the file alone."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f'{error.filename or files[-1]}:{error.lineno}'
    frame, location = error.__traceback__, files[-1]
    while frame is not None:
        if frame.tb_frame.f_code.co_filename in files:
            location = f'{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}'
        frame = frame.tb_next
    return location


@contextmanager
def _lazily() -> Iterator[None]:
    """Let mmengine read configs without importing their classes, but the standard library as it is.

    mmengine 0.10.7 recognises that library by the folder of the Python program, which differs in virtual environments.
    """
    with _one_at_a_time:  # both are switches of the whole process
        original = mmengine_config._is_builtin_module

        def is_builtin(module_name: str) -> bool:
            return module_name.split('.')[0] in sys.stdlib_module_names or original(module_name)

        mmengine_config._is_builtin_module, ConfigDict.lazy = is_builtin, True
        try:
            yield
        finally:
            mmengine_config._is_builtin_module, ConfigDict.lazy = original, False


def _plain(value: Any, key: str, file: str) -> Any:
    """Return `value` as builtin data, classes as dotted paths. Raises ConfigError for what a config cannot hold."""
    if isinstance(value, Mapping):
        return {name: _plain(item, f'{key}.{name}', file) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item, f'{key}.{row}', file) for row, item in enumerate(value))
    if isinstance(value, LazyObject | LazyAttr) and key.endswith('.type'):
        return f'{value.module}.{value}'
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(
        f'{key} is {value!r}, which is not data',
        where=file,
        why='a config holds numbers, words, lists and dicts; classes stand at the key type only',
        fix=f'write {key} as a number or a word, or give the part that reads it its own type=',
    )
