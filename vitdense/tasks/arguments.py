"""Arguments of tasks and losses: what cannot be right is an error when the part is made."""

from __future__ import annotations

from collections.abc import Sequence

from vitdense.errors import ConfigError, did_you_mean
from vitdense.types import Target


def check_choice(where: str, given: object, choices: tuple) -> None:
    """Raise ConfigError unless `given` is one of `choices`."""
    if given not in choices:
        raise ConfigError(
            f'{given!r} is not a choice here',
            where=where,
            why=f'the choices are {", ".join(map(repr, choices))}',
            fix=f'write {choices[0]!r}, or one of the others',
        )


def check_range(where: str, given: float, low: float, high: float) -> None:
    """Raise ConfigError unless `given` lies between `low` and `high`."""
    if not low <= given <= high:
        raise ConfigError(
            f'{given} is out of range',
            where=where,
            why=f'it must lie between {low} and {high}',
            fix=f'choose a number between {low} and {high}',
        )


def check_names(task: str, field: str, datasets: Sequence[str] | None) -> None:
    """Raise ConfigError unless targets have `field` and `datasets` is a list; `task` is the class that asks."""
    if field not in Target._fields:
        raise ConfigError(
            f"targets have no field '{field}'{did_you_mean(field, Target._fields)}",
            where=f'{task}(field=)',
            why=f'the fields of Target are {", ".join(Target._fields)}',
            fix='write a field of Target, or leave field out',
        )
    if isinstance(datasets, str):
        raise ConfigError(
            f'datasets is one word: {datasets!r}',
            where=f'{task}(datasets=)',
            why='it is a list of names of data sets; a word would be read letter by letter',
            fix=f'write datasets=[{datasets!r}]',
        )
