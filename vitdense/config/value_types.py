"""Checks of config values against annotations, and descriptions of what an annotation allows."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from vitdense.errors import did_you_mean


class Limits(NamedTuple):
    """The numbers from `low` to `high` (None: any), without the ends that are `open`; `empty` allows a list of none."""

    low: float | None = None
    high: float | None = None
    open: Literal['', 'low', 'high', 'both'] = ''
    empty: bool = True

    def hold(self, value: float) -> bool:
        """Return whether `value` lies within."""
        above = self.low is None or value > self.low or (value == self.low and self.open not in ('low', 'both'))
        below = self.high is None or value < self.high or (value == self.high and self.open not in ('high', 'both'))
        return above and below

    def __str__(self) -> str:
        if self.low is None and self.high is None:
            return ''
        low = f' above {_number(self.low)}' if self.open in ('low', 'both') else f' from {_number(self.low)}'
        if self.high is None:
            return low if self.open in ('low', 'both') else f'{low} on'
        return (
            f'{low} and below {_number(self.high)}'
            if self.open in ('high', 'both')
            else f'{low} to {_number(self.high)}'
        )


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


ANY = Limits()


class Recipe(dict):
    """In annotations: a part to build, `dict(type=..., ...)`."""


class Unfit(Exception):
    """`value` at `key` is not `allowed`."""

    def __init__(self, key: str, value: Any, allowed: str, hint: str = '', fix: str = '') -> None:
        super().__init__(key)
        self.key, self.value, self.allowed, self.hint, self.fix = key, value, allowed, hint, fix


def fit(value: Any, hint: Any, key: str, limits: Limits = ANY, text: str | None = None) -> Any:
    """Return `value` if the annotation `hint` allows it. Raises Unfit.

    `limits` hold for every number in it. `text` is the value as spelt on a command line: where a string is
    expected, a number is that string (a folder called 2024).
    """
    try:
        _fit(value, hint, key, limits)
    except Unfit:
        if text is None or value is None or isinstance(value, bool | dict) or not _takes_words(hint):
            raise
        return text
    return value


def _fit(value: Any, hint: Any, key: str, limits: Limits) -> None:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fit(value, inner[0], key, next((each for each in inner[1:] if isinstance(each, Limits)), limits))
    if hint is Any or hint is inspect.Parameter.empty:
        return None
    if origin in (Union, types.UnionType):
        return _fit_any(value, hint, key, limits)
    if origin is Literal:
        good = any(value == word and type(value) is type(word) for word in inner)
        words = did_you_mean(value, inner) if isinstance(value, str) else ''
    else:
        good, words = _holds(value, hint, origin), ''
    if not good:
        raise Unfit(key, value, describe(hint, limits), words, _fix(value, hint, key))
    if isinstance(value, int | float) and not isinstance(value, bool) and not limits.hold(value):
        raise Unfit(key, value, describe(hint, limits))
    return _fit_items(value, hint, key, limits)


def _fit_items(value: Any, hint: Any, key: str, limits: Limits) -> None:
    """Check what a list or dict holds."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, list | tuple):
        if not value and not limits.empty:
            raise Unfit(key, value, f'{describe(hint, limits)}, and not empty')
        kinds = inner if origin is tuple and inner[-1:] != (...,) else inner[:1] * len(value)
        if origin is tuple and len(kinds) != len(value):
            raise Unfit(key, value, describe(hint, limits))
        for row, (item, kind) in enumerate(zip(value, kinds, strict=False)):
            _fit(item, kind, f'{key}.{row}', limits)
    elif isinstance(value, Mapping) and len(inner) == 2:
        if not value and not limits.empty:
            raise Unfit(key, value, f'{describe(hint, limits)}, and not empty')
        for name, item in value.items():
            _fit(name, inner[0], f'{key}: the key {name!r}', ANY)
            _fit(item, inner[1], f'{key}.{name}', limits)


def _fit_any(value: Any, hint: Any, key: str, limits: Limits) -> None:
    """Check a union: one of its kinds must fit; the error is about the one that comes nearest."""
    nearest: Unfit | None = None
    for kind in get_args(hint):
        try:
            return _fit(value, kind, key, limits)
        except Unfit as error:
            if error.key != key or (nearest is None and (error.hint or _same_sort(value, kind))):
                nearest = error  # about an item or the range: it is nearer than the wrong kind as a whole
    if nearest is not None and nearest.key != key:
        raise nearest
    raise Unfit(key, value, describe(hint, limits), nearest.hint if nearest else '', _fix(value, hint, key))


def _same_sort(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and get_origin(kind) in (Sequence, list, tuple)


def _holds(value: Any, hint: Any, origin: Any) -> bool:
    """Return whether `value` is of the kind of `hint`, its items aside."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is None or hint is types.NoneType:
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is int:
        return number and isinstance(value, int)
    if hint is float:
        return number and math.isfinite(value)
    if hint is Path:
        return isinstance(value, str)
    if origin in (Sequence, list, tuple) or hint in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    if origin in (Mapping, dict):
        return isinstance(value, Mapping)
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return isinstance(value, int | str)
    if is_part(hint):
        return isinstance(value, Mapping) and 'type' in value
    return not _is_tensor(hint)  # other annotations allow everything


def is_part(hint: Any) -> bool:
    """Return whether `hint` stands for a built part (any: `object`); a plain dict beside it is a recipe."""
    return hint in (dict, object, Recipe) or get_origin(hint) is Callable or hint is Callable or _is_class(hint)


def is_section(hint: Any) -> bool:
    """Return whether `hint` is a section of the config: a dict whose keys are the fields of a dataclass."""
    return dataclasses.is_dataclass(hint) and hint.__name__.endswith('Section')


def _is_class(hint: Any) -> bool:
    plain = inspect.isclass(hint) and hint.__module__ != 'builtins' and not issubclass(hint, Path | enum.Enum)
    return plain and not _is_tensor(hint)


def _is_tensor(hint: Any) -> bool:
    return inspect.isclass(hint) and hint.__name__ == 'Tensor'


def _takes_words(hint: Any) -> bool:
    if get_origin(hint) in (Annotated, Union, types.UnionType):
        return any(_takes_words(kind) for kind in get_args(hint))
    return hint in (str, Path)


def describe(hint: Any, limits: Limits = ANY) -> str:
    """Return what `hint` allows, in words: 'a whole number from 1 on, or None'."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(inner[0], next((each for each in inner[1:] if isinstance(each, Limits)), limits))
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(describe(kind, limits) for kind in inner if not _is_tensor(kind))
        return ', or '.join(sorted(words, key='None'.__eq__))
    if origin is Literal:
        return 'one of ' + ', '.join(map(repr, inner))
    if origin is tuple and inner[-1:] != (...,):
        return f'a list of {len(inner)}: {", ".join(describe(kind, limits) for kind in inner)}'
    if origin in (Sequence, list, tuple):
        return f'a list, each item {describe(inner[0], limits)}' if inner else 'a list'
    if origin in (Mapping, dict):
        return f'a dict, each value {describe(inner[1], limits)}'
    if is_section(hint):
        return f'a dict with the keys {", ".join(field.name for field in dataclasses.fields(hint))}'
    names = {bool: 'True or False', int: f'a whole number{limits}', float: f'a number{limits}', str: 'a word'}
    names |= {Path: 'a path', None: 'None', types.NoneType: 'None'}
    return names.get(hint) or ('a part, dict(type=...)' if is_part(hint) else 'a value')


def _fix(value: Any, hint: Any, key: str) -> str:
    """Return the correct spelling of a nearly correct value, or ''."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    lists = [kind for kind in kinds if get_origin(kind) in (Sequence, list, tuple)]
    if lists and value is not None and not isinstance(value, list | tuple | dict):
        items = get_args(lists[0])[:1] or (Any,)
        try:
            _fit(value, items[0], key, ANY)
        except Unfit:
            return ''
        return f'a list is meant: {key}=[{value!r}]'
    if isinstance(value, float) and value.is_integer() and int in kinds:
        return f'write {int(value)}'
    return f'write {str(value)!r}, with quotes' if isinstance(value, int | float) and str in kinds else ''


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Return the annotations of the arguments of a class or function; empty where they cannot be read."""
    hints: dict[str, Any] = {}
    for source in (kind, getattr(kind, '__init__', None)):
        try:
            hints |= get_type_hints(source, include_extras=True)
        except (TypeError, NameError, AttributeError):
            continue
    return hints
