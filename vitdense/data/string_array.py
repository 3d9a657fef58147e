"""Strings as one array of bytes, which loader workers share; reference counts would copy a list into each worker."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


class StringArray(NamedTuple):
    """Strings in one array of bytes, UTF-8 with surrogateescape for other bytes of file names."""

    data: np.ndarray  # uint8
    ends: np.ndarray  # (N,) int64 end of each text

    def __getitem__(self, row: int) -> str:
        return self.coded(row).decode(errors='surrogateescape')

    def coded(self, row: int) -> bytes:
        """Return a string as bytes."""
        return self.data[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes()

    def all_coded(self) -> Iterator[bytes]:
        """Yield all strings as bytes."""
        data, start = memoryview(self.data), 0
        for end in self.ends:  # no list: it would take more memory than the strings
            yield data[start:end].tobytes()
            start = int(end)

    def all(self) -> Iterator[str]:
        """Yield all strings."""
        return (word.decode(errors='surrogateescape') for word in self.all_coded())

    def take(self, rows: np.ndarray) -> StringArray:
        """Return the strings of `rows`, int64."""
        count = len(self.ends)
        if len(rows) == count and (rows == np.arange(count)).all():
            return self
        return texts(self[int(row)] for row in rows)


class StringCollector:
    """Strings that are added one by one, in about the memory of their bytes."""

    def __init__(self) -> None:
        self._data, self._ends = bytearray(), array('q')

    def append(self, word: str) -> None:
        """Add a string at the end."""
        self._data += word.encode(errors='surrogateescape')
        self._ends.append(len(self._data))

    def array(self) -> StringArray:
        """Return all strings. Nothing may be added afterwards: the array has the same memory."""
        return StringArray(np.frombuffer(self._data, np.uint8), np.frombuffer(self._ends, np.int64))


def texts(words: Iterable[str]) -> StringArray:
    """Return `words` as one array."""
    collector = StringCollector()
    for word in words:
        collector.append(word)
    return collector.array()
