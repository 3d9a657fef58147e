"""Checks of arguments, which raise ConfigError with the reason and a fix."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitdense.errors import ConfigError, did_you_mean
from vitdense.types import Target

MAX_BAD_FRACTION = 0.01  # of the images of a training set that may be unreadable


def check(holds: bool, where: str, value: object, why: str, fix: str = '') -> None:
    """Raise ConfigError for the `value` of an argument `where` unless `holds`; `why` states the rule."""
    if not holds:
        fix = fix or f'choose another {where.rpartition(".")[2]}'
        raise ConfigError(f'{where} = {value!r}', where=where, why=why, fix=fix)


def within(value: float, low: float, high: float, where: str) -> float:
    """Return `value` if it is a number in [low, high]. Raises ConfigError."""
    holds = isinstance(value, (int, float)) and low <= value <= high
    words = f'number from {low} on' if high == math.inf else f'number from {low} to {high}'
    check(holds, where, value, f'it is a {words}', f'choose a {words}')
    return value


def pair(value: object, where: str, *, integer: bool = False) -> tuple:
    """Return `value` if it is a pair of numbers from 0 on. Raises ConfigError."""
    kinds = (int,) if integer else (int, float)
    holds = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, kinds) and v >= 0 for v in value)
    fix = 'write two numbers in parentheses, such as (512, 512)' if integer else 'write (low, high)'
    check(holds, where, value, f'it is a pair of {"whole " if integer else ""}numbers', fix)
    return tuple(value)


def span(value: object, where: str) -> tuple[float, float]:
    """Return `value` if it is (low, high). Raises ConfigError."""
    low, high = pair(value, where)
    check(low <= high, where, value, 'low is above high', f'write ({high}, {low})')
    return low, high


def interval(value: object, where: str) -> tuple[float, float] | None:
    """Return `value` if it is None or (low, high), two finite numbers with low below high. Raises ConfigError."""
    if value is None:
        return None
    numbers = isinstance(value, (tuple, list)) and len(value) == 2
    holds = numbers and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value) and value[0] < value[1]
    why = 'it is the numbers that become black and white: (low, high), low below high'
    check(holds, where, value, why, 'write for example (0, 4095) for 12 bits')
    return float(value[0]), float(value[1])


def sides(value: object, where: str) -> tuple[int, int]:
    """Return (H, W) of a side or a pair. Raises ConfigError."""
    size = pair((value, value) if isinstance(value, int) else value, where, integer=True)
    check(min(size) > 0, where, value, 'a side has no pixel', 'choose sides of 1 or more')
    return size


def check_choice(where: str, value: object, choices: tuple) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    why = f'the choices are {", ".join(map(repr, choices))}'
    check(value in choices, where, value, why, f'write {choices[0]!r}, or one of the others')


def check_ranges(part: object, names: Sequence[str], low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless the attributes `names` of `part` are numbers in [low, high]."""
    for name in names:
        within(getattr(part, name), low, high, f'{type(part).__name__}.{name}')


def label_source(task: str, field: str, datasets: Sequence[str] | None) -> tuple[str, tuple[str, ...] | None]:
    """Return the arguments `field` and `datasets` of the class `task`: which field of targets it reads, and of which
    data sets. Raises ConfigError unless targets have the field and `datasets` is a list.
    """
    why = f'the fields of Target are {", ".join(Target._fields)}{did_you_mean(field, Target._fields)}'
    check(field in Target._fields, f'{task}.field', field, why, 'write a field of Target, or leave field out')
    why = 'it is a list of names of data sets; a word would be read letter by letter'
    check(not isinstance(datasets, str), f'{task}.datasets', datasets, why, f'write datasets=[{datasets!r}]')
    return field, None if datasets is None else tuple(datasets)
