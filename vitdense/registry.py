"""Build objects from config dicts."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Any

from vitdense.errors import ConfigError, did_you_mean

# What a constructor raises that is given a value it cannot use: its own refusal, or where the value leads to.
REFUSALS = (
    ValueError, TypeError, AssertionError, ArithmeticError, LookupError, AttributeError, RuntimeError, MemoryError,
)  # fmt: skip


def build(part: Any, /, **context: Any) -> Any:
    """Return `part` itself, or the object that the recipe `part` describes.

    A recipe is a dict whose `type` is a class (in a config file) or its dotted path (on the command line, in a dumped
    config); its other keys are keyword arguments. `context` are arguments that flow downstream in code (`in_channels`,
    `num_classes`); a recipe may override them. Anything that is not a dict is a part already and is returned as it
    is.

    Raises ConfigError when the type cannot be found, an argument is unknown or missing, or its value is refused.
    """
    if not isinstance(part, dict):
        return part
    arguments = dict(part)
    kind = resolve(arguments.pop('type', None))
    _check_arguments(kind, set(arguments), context)
    try:
        return kind(**{**context, **arguments})
    except REFUSALS as error:
        raise ConfigError(
            str(error) or type(error).__name__,
            where=f'{kind.__module__}.{kind.__qualname__}',
            why=f'the part refuses what it is given ({type(error).__name__}): {_words(arguments)}',
            fix='change the value in the config; the docstring of the part says what it takes.\n'
            'VITDENSE_DEBUG=1 shows the traceback',
        ) from error


def _words(arguments: dict[str, Any]) -> str:
    """Return the arguments of a part on one line, long ones cut."""
    return textwrap.shorten(', '.join(f'{name}={value!r}' for name, value in arguments.items()), 300) or 'nothing'


def resolve(kind: Any) -> Any:
    """Return the class or function that `kind` (itself, or a dotted path) names. Raises ConfigError."""
    if callable(kind):
        return kind
    if not isinstance(kind, str) or '.' not in kind:
        raise ConfigError(
            f'a part needs a type, got {kind!r}',
            where='type=',
            why='a recipe is dict(type=SomeClass, ...) where type is a class or its dotted path',
            fix="write the class itself, or its full path such as type='vitdense.heads.linear.LinearHead'",
        )
    module_name, name = kind.rsplit('.', 1)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the latter two: no module can have such a name
        raise ConfigError(
            f"cannot import '{module_name}'",
            where=f'type={kind!r}',
            why=str(error),
            fix='check the spelling of the module, or install the package that holds it',
        ) from error
    resolved = getattr(module, name, None)
    if resolved is None:
        raise ConfigError(
            f"'{module_name}' has no '{name}'{did_you_mean(name, dir(module))}",
            where=f'type={kind!r}',
            why='the module exists, the class does not',
            fix='check the spelling of the class name',
        )
    return resolved


def takes(part: Any, name: str) -> bool:
    """Return whether `part` is a recipe of something that takes an argument `name`."""
    return isinstance(part, dict) and name in inspect.signature(resolve(part.get('type'))).parameters


@cache
def parameters_of(kind: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the arguments that `kind` takes by name; None where it takes any, or they cannot be read."""
    try:
        parameters = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return None
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_any else parameters


def _check_arguments(kind: Any, provided: set[str], context: dict[str, Any]) -> None:
    """Refuse arguments that `kind` does not take: a wrong argument is an error now, with the nearest name."""
    parameters = parameters_of(kind)
    if parameters is None:
        return
    for name in sorted(provided):
        if name not in parameters:
            raise ConfigError(
                f"{kind.__name__} takes no argument '{name}'{did_you_mean(name, parameters)}",
                where=f'{kind.__module__}.{kind.__qualname__}',
                why=f'its arguments are: {", ".join(parameters)}',
                fix=f"remove or rename '{name}'",
            )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        and name not in provided
        and name not in context
    ]
    if missing:
        raise ConfigError(
            f'{kind.__name__} needs {", ".join(missing)}',
            where=f'{kind.__module__}.{kind.__qualname__}',
            why='the config does not give it and no other part provides it',
            fix=f'add {missing[0]}=... to the config of {kind.__name__}',
        )


def _missing() -> None:
    """Stand for an attribute that a part does not have."""


_UNIMPLEMENTED = (_missing.__name__, '_forward_unimplemented')


def check_part(part: Any, protocol: type, where: str) -> Any:
    """Return `part` if it has every attribute and method of `protocol`. Raises ConfigError."""
    functions = [value for value in vars(protocol).values() if inspect.isfunction(value)]
    methods = [value.__name__ for value in functions if value.__module__ == protocol.__module__]  # not those of typing
    names = [*vars(protocol).get('__annotations__', {}), *methods]
    # a module without `forward` has that of torch, which raises an error
    missing = [name for name in names if getattr(getattr(part, name, _missing), '__name__', '') in _UNIMPLEMENTED]
    if missing:
        raise ConfigError(
            f'{type(part).__name__} has no {", ".join(missing)}',
            where=where,
            why=f'{protocol.__module__}.{protocol.__name__} lists what such a part must have: {", ".join(names)}',
            fix=f'add {missing[0]} to {type(part).__name__}, or use another part',
        )
    return part
