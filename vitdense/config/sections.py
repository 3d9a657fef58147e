"""Sections of a config file share no objects: what is assigned twice is copied while the file runs.

In Python `test_dataloader = val_dataloader` gives one object two names, and a change of the test set changes the
validation set too. Here each section owns its dicts and lists: after every statement of the file, what two places hold
is copied for the second one. A test section that is not there stands for that of validation: naming it makes the copy.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

from vitdense.errors import ConfigError

FOLLOWS = {'test_dataloader': 'val_dataloader', 'test_evaluator': 'val_evaluator'}


class _Copy(NamedTuple):
    """A copy of `source`, whose content was `before` at that time."""

    line: int
    name: str  # where the copy went
    source: Any
    before: Any
    helper: str  # the name outside of the sections that `source` has as well, or ''


class Sections:
    """The top-level names `names` of a config file that runs, of which `keys` are sections of the config."""

    def __init__(self, names: dict[str, Any], keys: tuple[str, ...], file: str) -> None:
        self.names = names
        self.keys = keys
        self.file = file
        self.owners: dict[int, tuple[str, Any]] = {}  # the object is kept, so that its id stays its own
        self.copies: list[_Copy] = []
        names.update(__open__=self.open, __separate__=self.separate)

    def open(self, name: str, line: int) -> None:
        """Before a statement that reads `test_*`: let it be the section of validation unless it is there."""
        if name not in self.names and FOLLOWS[name] in self.names:
            self.names[name] = self.names[FOLLOWS[name]]
            self.separate(line)

    def separate(self, line: int) -> None:
        """After a statement: copy what several places hold, for all of them but the first."""
        held: dict[int, set[str]] = {}
        for key in self.keys:
            for value in _containers(self.names.get(key)):
                held.setdefault(id(value), set()).add(key)
        kept: set[int] = set()

        def own(value: Any, key: str, name: str) -> Any:
            if isinstance(value, tuple):
                items = [own(item, key, name) for item in value]
                return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
            if not isinstance(value, dict | list):
                return value
            owner = self.owners.get(id(value), (key,))[0]
            if id(value) in kept or (owner != key and owner in held[id(value)]):
                self.copies.append(_Copy(line, name, value, copied(value), self._helper(value)))
                value = copied(value)
            kept.add(id(value))
            self.owners[id(value)] = (key, value)
            for item_key, item in list(dict.items(value) if isinstance(value, dict) else enumerate(value)):
                owned = own(item, key, f'{name}.{item_key}')
                if owned is not item:
                    (dict if isinstance(value, dict) else list).__setitem__(value, item_key, owned)
            return value

        for key in (*(key for key in self.keys if key not in FOLLOWS), *FOLLOWS):  # the test copies validation's
            if key in self.names:
                self.names[key] = own(self.names[key], key, key)

    def finish(self) -> None:
        """At the end of the file: drop test sections that are validation's; refuse changes that came too late.

        Raises ConfigError when what was copied is changed below, and whether the copy was to change too is not clear.
        """
        for row in self.copies:
            follows = FOLLOWS.get(row.name)
            whole = follows is not None and row.source is self.names.get(follows)
            if whole and self.names.get(row.name) in (row.before, row.source):
                del self.names[row.name]
            elif row.source != row.before and (row.helper or whole):
                source = row.helper or follows
                raise ConfigError(
                    f'{source} is changed after {row.name} was made of it',
                    where=f'{self.file}:{row.line}',
                    why='sections of a config share nothing: the later change does not reach the copy',
                    fix=f'change {source} above line {row.line}, or change both',
                )

    def _helper(self, value: Any) -> str:
        """Return the name beside the sections that leads to `value`, or ''."""
        outside = (name for name in self.names if name not in self.keys and not name.startswith('__'))
        holders = (name for name in outside if any(each is value for each in _containers(self.names[name])))
        return next(holders, '')


def watched(tree: ast.Module) -> ast.Module:
    """Return the code of a config with calls of `__open__` and `__separate__` around its statements."""

    class Watch(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return node

        def generic_visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            for field in ('body', 'orelse', 'finalbody'):
                block = getattr(node, field, None)
                if isinstance(block, list):
                    setattr(node, field, [each for statement in block for each in around(statement)])
            return node

    def around(statement: ast.stmt) -> Iterator[ast.stmt]:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement, ast.Import | ast.ImportFrom) or is_docstring:
            yield statement
            return
        read = {
            node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        for name in sorted(read & set(FOLLOWS)):
            yield _call('__open__', name, statement.lineno, at=statement)
        yield statement
        yield _call('__separate__', statement.lineno, at=statement)

    return ast.fix_missing_locations(Watch().visit(tree))


def copied(value: Any) -> Any:
    """Return a copy of the dicts and lists of `value`, of the same classes; other values are shared."""
    if isinstance(value, dict):
        copy = type(value)()
        for key, item in dict.items(value):
            dict.__setitem__(copy, key, copied(item))
        return copy
    return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value


def _containers(value: Any) -> Iterator[Any]:
    """Yield every dict and list within `value`, itself included."""
    if isinstance(value, dict | list):
        yield value
    if isinstance(value, dict | list | tuple):
        for item in dict.values(value) if isinstance(value, dict) else value:
            yield from _containers(item)


def _call(name: str, *words: str | int, at: ast.stmt) -> ast.stmt:
    call = ast.Call(ast.Name(name, ast.Load()), [ast.Constant(word) for word in words], [])
    return ast.copy_location(ast.Expr(call), at)
