"""Work that the processes of a run do together, where an error of one is raised in all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process

Result = TypeVar('Result')


def on_first(function: Callable[[], Result]) -> Result:
    """Call `function` in the first process; return its result, or raise its error, in all."""
    outcome = [_outcome(function) if is_main_process() else None]
    broadcast_object_list(outcome)
    return _result(outcome)[0]


def on_all(function: Callable[[], Result]) -> list[Result]:
    """Call `function` in every process; return their results by rank, or raise the error of the first that fails."""
    return _result(all_gather_object(_outcome(function)))


def _outcome(function: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error.with_traceback(None)


def _result(outcomes: list[tuple[Result | None, Exception | None]]) -> list[Result]:
    error = next((error for _, error in outcomes if error is not None), None)
    if error is not None:
        raise error
    return [result for result, _ in outcomes]
