"""Skipping of unusable inputs, with a warning for each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

from vitdense.device import out_of_memory
from vitdense.errors import DataError, DiskError, ResourceError, VitDenseError
from vitdense.inference.inputs import Input

logger = logging.getLogger('vitdense')


class InputGuard:
    """Runs a function for each input and records failed ones in `skipped`; the error of the `only` input is raised."""

    def __init__(self) -> None:
        self.skipped: list[dict[str, str]] = []
        self.only = False
        self._errors: list[VitDenseError] = []

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the first input that was skipped for another reason than its content."""
        return next((error.exit_code for error in self._errors if not isinstance(error, DataError)), 0)

    def run(self, item: Input, work: Callable[[], Any]) -> Any:
        """Return `work()`; None, after a warning, where this input cannot be read, computed or written."""
        try:
            return work()
        except (DataError, DiskError, ResourceError) as error:
            self.skip(item, error)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            self.skip(item, _too_large(item, error))
        return None

    def skip(self, item: Input, error: VitDenseError) -> None:
        """Record that `item` is skipped. Raises the error of the only input."""
        if self.only:
            raise error
        self._errors.append(error)
        self.skipped.append({'file': str(item.source), 'reason': error.message})
        logger.warning('skipped %s', error.message)

    def raise_all_failed(self, number: int) -> NoReturn:
        """Raise the error of a call in which all of `number` inputs failed, of the type of the first one."""
        first = self._errors[0] if self._errors else None
        kind = type(first) if isinstance(first, DiskError | ResourceError) else DataError
        raise kind(
            f'none of {number} inputs could be ' + ('read' if kind is DataError else 'finished'),
            where=', '.join(entry['file'] for entry in self.skipped[:5]),
            why='; '.join(entry['reason'] for entry in self.skipped[:5]),
            fix='give images or videos that can be opened' if kind is DataError else first.fix,
        )


def _too_large(item: Input, error: BaseException) -> ResourceError:
    return ResourceError(
        f'{item.name}: not enough memory',
        where=str(item.source),
        why=str(error).partition('\n')[0],
        fix='give --tile SIZE to predict in windows, or a smaller --batch',
    )
