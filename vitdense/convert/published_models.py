"""The table of published models by name, `published.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vitdense.convert.families import FAMILIES
from vitdense.convert.key_rules import CheckpointFamily

TABLE = Path(__file__).with_name('published.toml')


class RemoteFile(NamedTuple):
    """A file of a publisher: at `url`, or `path` in the repository `repo` of the Hugging Face Hub."""

    url: str = ''
    repo: str = ''
    path: str = ''
    name: str = ''  # of the local file; default: the last part of the address
    size: int | None = None  # bytes, where the publisher states them
    md5: str = ''
    sha256: str = ''  # or its first digits

    @property
    def local_name(self) -> str:
        return self.name or (self.url or self.path).rpartition('/')[2]

    @property
    def address(self) -> str:
        return self.url or f'https://huggingface.co/{self.repo}/resolve/main/{self.path}'

    @property
    def hashes(self) -> dict[str, str]:
        return {kind: digits for kind, digits in (('sha256', self.sha256), ('md5', self.md5)) if digits}


class PublishedModel(NamedTuple):
    """A model that somebody published."""

    name: str
    family: str  # key of FAMILIES
    task: str
    data: str  # that its classes are of
    classes: int
    parameters: int
    config: str  # ours of the same architecture
    result: str  # as published
    source: str  # where the result is published
    files: Sequence[RemoteFile]
    base: RemoteFile | None = None  # backbone to which the files are added

    @property
    def published(self) -> CheckpointFamily:
        """Source, licence and conversion."""
        return FAMILIES[self.family]

    @property
    def all_files(self) -> list[RemoteFile]:
        return [*self.files, *([self.base] if self.base else ())]

    @property
    def size(self) -> int | None:
        """Bytes of all files, where the publisher states them."""
        sizes = [file.size for file in self.all_files]
        return None if None in sizes else sum(sizes)


@cache
def published_models() -> dict[str, PublishedModel]:
    """Return all models of the table by name."""
    rows = _table()['model']
    models = [
        PublishedModel(
            **row
            | {
                'files': tuple(RemoteFile(**file) for file in row['files']),
                'base': RemoteFile(**row['base']) if 'base' in row else None,
            }
        )
        for row in rows
    ]
    return {model.name: model for model in models}


def find_model(name: str) -> PublishedModel | None:
    """Return the model of this name, which is read without case and with `_` as `-`."""
    return published_models().get(re.sub('_', '-', name.strip().lower()))


def configs_of(family: str) -> list[str]:
    """Return our configs of a family: of its published models, and others."""
    configs = [model.config for model in published_models().values() if model.family == family]
    return list(dict.fromkeys([*configs, *_table()['other_configs'].get(family, ())]))


def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding='utf-8'))
