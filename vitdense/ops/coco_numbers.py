"""Parsing of the numbers in COCO annotation and result files.

Ids, sizes and flags are exact whole numbers in any spelling: `1`, `1.0`, `"1"` and `"1.0"` are the same number. Any
other value is rejected (`1.5`, `null`, the empty string, and `true` except as a flag). Coordinates, areas and scores
are JSON numbers that a float64 can hold.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST_SIDE = 2**31 - 1  # of an image, in pixels
_WHOLE = re.compile(r'\s*([+-]?[0-9]{1,4000})(\.0*)?\s*')
_FLAGS = {'true': True, 'false': False}


def whole(value: Any) -> int | None:
    """Return the whole number of `value` (1, 1.0, "1", "1.0"), exactly, or None."""
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if value.is_integer() else None
    matched = _WHOLE.fullmatch(value) if type(value) is str else None
    return int(matched[1]) if matched else None


def flag(value: Any) -> bool | None:
    """Return the boolean of `value`: 0 or 1 as a whole number, true or false, also as strings; otherwise None."""
    if type(value) is bool:
        return value
    number = whole(value)
    if number is None:
        return _FLAGS.get(value.strip().lower()) if type(value) is str else None
    return bool(number) if number in (0, 1) else None


def side(value: Any) -> int | None:
    """Return the width or height of `value` in pixels, or None."""
    number = whole(value)
    return number if number is not None and 0 < number <= LARGEST_SIDE else None


def by_id(ids: Sequence[int | str]) -> dict[int | str, int]:
    """Return the index of each id; strings that spell a whole number are also listed by it, unless it is ambiguous."""
    indices: dict[int | str, int] = {name: index for index, name in enumerate(ids)}
    words = {name: whole(name) for name in ids if type(name) is str}
    count = Counter(words.values())
    for word, number in words.items():
        if number is not None and (count[number] == 1 or word == str(number)):
            indices.setdefault(number, indices[word])
    return indices


def find(indices: Mapping[Any, int], value: Any) -> int | None:
    """Return the index of the id `value` in `indices`: as written, otherwise by its whole number."""
    index = indices.get(value) if type(value) in (int, str) else None
    return indices.get(whole(value)) if index is None else index


def image_id(value: Any) -> int | str | None:
    """Return an image's id: a whole number or a non-empty string; None for any other value."""
    return value if isinstance(value, str) and value else whole(value)


def fault_of_numbers(values: list[Any]) -> str | None:
    """Return the reason why `values` are not all finite numbers, or None."""
    if not set(map(type, values)) <= {int, float}:
        odd = next(value for value in values if type(value) not in (int, float))
        return f'{shown(odd)} is not a number'
    try:
        return None if all(map(math.isfinite, values)) else 'its numbers are not finite'
    except OverflowError:
        return 'a number is too large'


def shown(value: Any, most: int = 60) -> str:
    """Return the `repr` of `value`, cut to `most` characters."""
    if type(value) is int and value.bit_length() > 1000:
        return f'a number of about {int(value.bit_length() * 0.30103)} digits'
    text = repr(value)
    return text if len(text) <= most else f'{text[:most]}...'
