"""The content of a config file as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Section(dict):
    """A dict whose keys are attributes as well; the dicts in it are sections too."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({key: _sections(value) for key, value in content.items()})

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    __setattr__ = dict.__setitem__


class RunConfig(Section):
    """All sections of a config, and the file that they were read from."""

    def __init__(self, content: Mapping[str, Any], filename: str) -> None:
        super().__init__(content)
        self.__dict__['filename'] = filename

    def replaced(self, **sections: Any) -> RunConfig:
        """Return a config with other `sections`."""
        return RunConfig({**self, **sections}, self.filename)


def _sections(value: Any) -> Any:
    if isinstance(value, dict):
        return Section(value)
    return type(value)(map(_sections, value)) if type(value) in (list, tuple) else value


def work_folder(cfg: RunConfig, work_dir: str | Path | None) -> Path:
    """Return the folder `work_dir` for results, else that of the config, by default below work_dirs/ by its name."""
    return Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / Path(cfg.filename).stem)


def same(one: Any, other: Any) -> bool:
    """Compare two values of configs; lists and tuples count as equal, as in JSON."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other
