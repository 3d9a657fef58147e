"""Exceptions with `where`, `why` and `fix`, which the tools print as one block before they exit with `exit_code`.

With the environment variable VITDENSE_DEBUG=1 the traceback is printed, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class VitDenseError(Exception):
    """Base class of errors that a user can fix.

    `message` is one line; `where` names the file, key or parameter; `why` explains; `fix` gives the remedy.
    """

    kind = 'general'
    exit_code = 1

    def __init__(self, message: str, *, where: str = '', why: str = '', fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        rows = [f'error[{self.kind}]: {self.message}']
        for name, text in (('where', self.where), ('why', self.why), ('fix', self.fix)):
            if text:
                rows.append(f'  {name + ":":7}' + text.replace('\n', '\n' + ' ' * 9))
        return '\n'.join(rows)

    def __reduce__(self):
        # exceptions cross process borders (DataLoader workers); keyword-only arguments need help there
        return _restore, (type(self), self.message, self.where, self.why, self.fix)


def _restore(kind: type[VitDenseError], message: str, where: str, why: str, fix: str) -> VitDenseError:
    return kind(message, where=where, why=why, fix=fix)


class ConfigError(VitDenseError):
    """A config, an option or an argument that cannot be right."""

    kind = 'config'
    exit_code = 2


class PredictionError(ConfigError, AttributeError):
    """An attribute of a result that the model does not predict, or several heads do: `hasattr` returns False."""


class DataError(VitDenseError):
    """An image, a label or a data set that cannot be used."""

    kind = 'data'
    exit_code = 3


class CheckpointError(VitDenseError):
    """Weights or a checkpoint that cannot be used."""

    kind = 'checkpoint'
    exit_code = 3


class NumericsError(VitDenseError):
    """NaN or infinite values."""

    kind = 'numerics'
    exit_code = 4


class ExportError(VitDenseError):
    """An exported model whose outputs differ from those of the model."""

    kind = 'export'
    exit_code = 5


class ResourceError(VitDenseError):
    """Memory, shared memory, workers or system libraries that are missing."""

    kind = 'resources'
    exit_code = 6


class DiskError(VitDenseError):
    """A disk that is full or cannot be written."""

    kind = 'disk'
    exit_code = 7


class FullDiskError(DiskError):
    """A full disk or an exhausted quota: deleting files helps."""


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, or an empty string.

    `cutoff` in [0, 1] is how much of both words must agree.
    """
    near = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ''


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` names in a row, and how many more there are."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def cause_of(error: BaseException) -> str:
    """Return the type of an error of other code and the first line of its message."""
    first = str(error).strip().partition('\n')[0][:200]
    return f'{type(error).__name__}: {first}' if first else type(error).__name__


def short(value: object, most: int = 80) -> str:
    """Return the `repr` of `value`, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f'{text[: most - 3]}...'
