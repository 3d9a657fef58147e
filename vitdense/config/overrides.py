"""`--cfg-options K=V`: change a config from the command line, strictly.

* `model.network.backbone.drop_path=0.2`: a dotted path; list items by number (`val_evaluator.0.head=sem`).
* The key must exist; a misspelt one is refused with the nearest match. `+K=V` adds a key.
* V is a Python literal where possible (`0.1`, `None`, `(1, 2)`, `{'a': 1}`, `dict(a=1)`), or a list of
  unquoted strings (`[road, sky]`); anything else is a string, also a number where a path or a name is expected.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from typing import Any

from vitdense.arguments import check
from vitdense.config.option_names import config_key
from vitdense.errors import ConfigError, did_you_mean
from vitdense.registry import resolve


def apply_options(content: dict[str, Any], options: Sequence[str]) -> dict[str, str]:
    """Change `content` in place, and return the values as they are spelt, by key.

    Raises ConfigError for an option that names no key or has no value.
    """
    spelt = {}
    for option in options:
        key, equals, text = option.partition('=')
        why = 'an option is K=V, a key, an equals sign and a value, without spaces around it'
        fix = "write for example --cfg-options schedule.max_iters=100 'schedule.milestones=(60, 80)'"
        check(bool(equals and key.strip('+')), '--cfg-options', option, why, fix)
        added = key.startswith('+')
        path = key.removeprefix('+').split('.')
        _set(content, path, parse_value(text), option=option, added=added, root=content)
        spelt['.'.join(path)] = text
    return spelt


def parse_value(text: str) -> Any:
    """Return the Python literal that `text` spells, the list of the words in `[a, b]`, or `text` itself."""
    try:
        return ast.literal_eval(_DictCalls().visit(ast.parse(text.strip(), mode='eval')))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        items = _items(text.strip())
        if items is not None:
            return [parse_value(item.strip()) for item in items]
        return {'true': True, 'false': False, 'none': None}.get(text.lower(), text)


def _items(text: str) -> list[str] | None:
    """Return the items of a list whose words have no quotes, such as `[road, sky]`; None if it is none."""
    if len(text) < 3 or text[0] not in '[(' or text[-1] != {'[': ']', '(': ')'}[text[0]]:
        return None
    items, depth = [''], 0
    for letter in text[1:-1]:
        depth += (letter in '[({') - (letter in '])}')
        if depth < 0 or letter in '"\'':
            return None
        items = [*items, ''] if letter == ',' and not depth else [*items[:-1], items[-1] + letter]
    return None if depth else items if items[-1].strip() else items[:-1]


class _DictCalls(ast.NodeTransformer):
    """Write `dict(a=1)`, the spelling of configs, as the literal `{'a': 1}`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named = all(item.arg for item in node.keywords) and not node.args
        if not (named and isinstance(node.func, ast.Name) and node.func.id == 'dict'):
            return node
        return ast.Dict([ast.Constant(item.arg) for item in node.keywords], [item.value for item in node.keywords])


def _set(content: Any, path: Sequence[str], value: Any, *, option: str, added: bool, root: dict) -> None:
    """Walk to the holder of the last key and set it; tuples on the way become lists."""
    key, rest = path[0], path[1:]
    if isinstance(content, list):
        row = _row(content, key, option)
        if rest:
            content[row] = _opened(content[row])
            _set(content[row], rest, value, option=option, added=added, root=root)
        else:
            content[row] = value
        return
    if not isinstance(content, dict):
        raise ConfigError(
            f"'{option}' goes into {content!r}, which has no keys",
            where=f'--cfg-options {option}',
            why=f"the part before '{key}' is a plain value",
            fix="set the whole value instead, as a literal: K={'key': value}",
        )
    if key not in content and not added:
        raise _unknown(content, key, option, root)
    if not rest:
        content[key] = value
        return
    content[key] = _opened(content.get(key, {}))
    _set(content[key], rest, value, option=option, added=added, root=root)


def _opened(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _row(content: list, key: str, option: str) -> int:
    if key.lstrip('-').isdigit() and -len(content) <= int(key) < len(content):
        return int(key)
    raise ConfigError(
        f"'{key}' is no item of a list of {len(content)}",
        where=f'--cfg-options {option}',
        why='items of lists are named by number, from 0',
        fix=f'use a number from 0 to {len(content) - 1}' if content else 'the list is empty: set it as a whole',
    )


def _matching_paths(content: Any, wanted: Sequence[str], path: tuple[str, ...] = ()) -> list[str]:
    """Return the dotted paths within `content` that end in the last of `wanted`, and pass the others in their order."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    paths = []
    for name, item in items:
        here = (*path, str(name))
        rest = iter(here)
        if here[-1] == wanted[-1] and all(part in rest for part in wanted):
            paths.append('.'.join(here))
        paths += _matching_paths(item, wanted, here)
    return paths


def _unknown(content: dict[str, Any], key: str, option: str, root: dict[str, Any]) -> ConfigError:
    """Return the error for a key that is not there. Suggestions are arguments of the recipe, other keys of the config
    (`root`) and names of other programs.
    """
    path = option.partition('=')[0].lstrip('+').split('.')
    similar = _matching_paths(root, path)
    meant = f"; did you mean '{similar[0]}'?" if similar else ''
    if len(path) == 1 and not similar and config_key(key):
        meant = f'; it is set by {config_key(key)}'
    takes: tuple[str, ...] = ()
    if 'type' in content:
        try:
            takes = tuple(inspect.signature(resolve(content['type'])).parameters)
        except (ConfigError, ValueError, TypeError):
            takes = ()
    known = list(dict.fromkeys([*content, *takes]))
    if key in takes:
        fix = f'write +{option}: {content["type"].rpartition(".")[2]} takes it, but the config does not set it'
    else:
        fix = f'check the spelling; +{option} adds a new key'
    return ConfigError(
        f"the config has no key '{key}'{meant or did_you_mean(key, [name for name in known if name != key])}",
        where=f'--cfg-options {option}',
        why=f'the keys there are: {", ".join(content) or "none"}',
        fix=fix,
    )
