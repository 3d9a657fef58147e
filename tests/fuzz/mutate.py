"""Random changes of bytes, text and JSON values; each is a function of its generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

NUMBERS = (0, -1, 1, 2, 255, 256, 2**15, 2**31 - 1, 2**31, 2**63, -(2**63) - 1, 10**9, 10**30, 1e308, 1e-308, -0.5, 0.5)
TEXTS = (
    '',
    ' ',
    'a\0b',
    '\ud800',
    '../../etc/passwd',
    '/etc/passwd',
    'http://localhost/x',
    'os.system',
    'x' * 5000,
    '\n',
)
ODD = (None, True, False, [], {}, [[]], [None], {'': None}, {'type': 'os.system', 'command': 'true'}, *NUMBERS, *TEXTS)
ODD += (float('nan'), float('inf'), -float('inf'))
CHUNKS = (b'\0', b'\xff', b'\xff' * 4, b'\x7f\xff\xff\xff', b'\0\0\0\0', b'\x80\0\0\0', b'\0' * 64)
WORDS = (
    'nan',
    'inf',
    '-1',
    '1e400',
    '9' * 5000,
    'None',
    '\0',
    '\ufeff',
    '\u202e',
    '{',
    ']',
    '"',
    '<',
    '&',
    ',',
    '\t',
    '\r',
    '%s',
)


def mutate_bytes(data: bytes, random: Random, others: tuple[bytes, ...] = ()) -> bytes:
    """Return `data` with a few of its bytes flipped, replaced, removed, repeated, or taken from one of `others`."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        start = random.randrange(len(changed) + 1)
        length = random.choice((1, 2, 4, 16, 256))
        kind = random.randrange(7)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << random.randrange(8)
        elif kind == 1 and start < len(changed):
            changed[start] = random.randrange(256)
        elif kind == 2:
            chunk = random.choice(CHUNKS)
            changed[start : start + len(chunk)] = chunk
        elif kind == 3:
            del changed[start : start + length]
        elif kind == 4:
            changed[start:start] = changed[start : start + length]
        elif kind == 5 and random.random() < 0.3:
            del changed[start:]
        elif kind == 6 and others:
            other = random.choice(others)
            begin = random.randrange(len(other) + 1)
            changed[start : start + length] = other[begin : begin + length]
    return bytes(changed)


def mutate_text(text: str, random: Random) -> bytes:
    """Return UTF-8 text with lines or words removed, repeated, swapped or replaced, and sometimes with other bytes."""
    lines = text.split('\n')
    for _ in range(random.choice((1, 1, 2, 4))):
        row = random.randrange(len(lines))
        kind = random.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[row]
        elif kind == 1:
            lines.insert(row, random.choice(lines))
        elif kind == 2:
            start = random.randrange(len(lines[row]) + 1)
            lines[row] = lines[row][:start] + random.choice(WORDS) + lines[row][start + random.randrange(8) :]
        elif kind == 3:
            words = lines[row].split(' ')
            words[random.randrange(len(words))] = str(random.choice(ODD))
            lines[row] = ' '.join(words)
        else:
            other = random.randrange(len(lines))
            lines[row], lines[other] = lines[other], lines[row]
    data = '\n'.join(lines).encode('utf-8', 'surrogatepass')
    return mutate_bytes(data, random) if random.random() < 0.2 else data


def locations(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every item inside of `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield (*path, key)
        yield from locations(item, (*path, key))


def mutate_value(value: Any, random: Random, odd: tuple = ODD) -> Any:
    """Return a copy of nested dicts and lists in which a few items are replaced, removed, renamed or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        actual = list(locations(value))
        if not actual:
            return random.choice(odd)
        path = random.choice(actual)
        holder = _at(value, path[:-1])
        if isinstance(holder, tuple):
            continue
        kind = random.randrange(8)
        if kind == 0:
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, dict):
            holder[random.choice((str(path[-1]) + 's', '', 'type', 'pretrained', '\ud800'))] = holder.pop(path[-1])
        elif kind == 2:
            holder[path[-1]] = copy.deepcopy(_at(value, random.choice(actual)))
        elif kind == 3:
            holder[path[-1]] = _stretched(holder[path[-1]], random)
        else:
            holder[path[-1]] = copy.deepcopy(random.choice(odd))
    return value


def mutate_json(value: Any, random: Random) -> bytes:
    """Return the JSON of a mutated value; sometimes its bytes are mutated instead."""
    kind = random.random()
    if kind < 0.2:
        return mutate_bytes(json.dumps(value).encode(), random)
    data = json.dumps(mutate_value(value, random)).encode()
    return data.replace(b'null', b'[' * 100_000 + b']' * 100_000, 1) if kind > 0.98 else data


def _at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def _stretched(value: Any, random: Random) -> Any:
    """Return a value of the same type that is larger, smaller or nested."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return random.choice((value * 10, value + 1, -value, value * 1000, str(value), float(value), [value]))
    if isinstance(value, str):
        return random.choice((value * 2, value[:-1], value.upper(), [value], value + '.x'))
    if isinstance(value, list):
        return random.choice((value * 2, value[:-1], [value], value * 500 if len(value) < 10 else value))
    nested = value
    for _ in range(random.choice((1, 40, 400))):
        nested = {'a': nested}
    return random.choice((nested, [value], list(value)))
