"""Arguments of transforms: what is wrong is an error that says what would be right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitdense.errors import ConfigError, did_you_mean
from vitdense.types import Target

MAX_BAD_FRACTION = 0.01  # of the images of a training set that may be unreadable


def within(value: float, low: float, high: float, where: str) -> float:
    """Return `value` if it is a number in [low, high]. Raises ConfigError."""
    if isinstance(value, (int, float)) and low <= value <= high:
        return value
    raise ConfigError(
        f'{where} = {value!r}',
        where=where,
        why=f'it is a number from {low} to {high}',
        fix=f'choose a number in [{low}, {high}]',
    )


def pair(value: object, where: str, *, integer: bool = False) -> tuple:
    """Return `value` if it is a pair of numbers from 0 on. Raises ConfigError."""
    kinds = (int,) if integer else (int, float)
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, kinds) and v >= 0 for v in value):
        return tuple(value)
    raise ConfigError(
        f'{where} = {value!r}',
        where=where,
        why=f'it is a pair of {"whole " if integer else ""}numbers',
        fix='write two numbers in parentheses, such as (512, 512)' if integer else 'write (low, high)',
    )


def span(value: object, where: str) -> tuple[float, float]:
    """Return `value` if it is (low, high). Raises ConfigError."""
    low, high = pair(value, where)
    if low <= high:
        return low, high
    raise ConfigError(f'{where} = {value!r}', where=where, why='low is above high', fix=f'write ({high}, {low})')


def interval(value: object, where: str) -> tuple[float, float] | None:
    """Return `value` if it is None or (low, high), two finite numbers with low below high. Raises ConfigError."""
    if value is None:
        return None
    numbers = isinstance(value, (tuple, list)) and len(value) == 2
    if numbers and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value) and value[0] < value[1]:
        return float(value[0]), float(value[1])
    raise ConfigError(
        f'{where} = {value!r}',
        where=where,
        why='it is the numbers that become black and white: (low, high), low below high',
        fix='write for example (0, 4095) for 12 bits',
    )


def sides(value: object, where: str) -> tuple[int, int]:
    """Return (H, W) of a side or a pair. Raises ConfigError."""
    height, width = pair((value, value) if isinstance(value, int) else value, where, integer=True)
    if min(height, width) > 0:
        return height, width
    raise ConfigError(f'{where} = {value!r}', where=where, why='a side has no pixel', fix='choose sides of 1 or more')


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
