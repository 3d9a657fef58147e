"""What a user names on a command line - pictures, folders, globs, videos, cameras -, and names for the answers."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vitdense.data.images import PICTURE_SUFFIXES
from vitdense.errors import ConfigError
from vitdense.video import VIDEO_SUFFIXES


class Input(NamedTuple):
    """One thing to look at."""

    kind: Literal['picture', 'video', 'camera']
    source: Path | int  # a file, or the number of a camera
    relative: Path = Path()  # the file below the folder or pattern that led to it; of a file its name

    @property
    def name(self) -> str:
        return f'camera {self.source}' if self.kind == 'camera' else self.source.name


def find_inputs(words: Sequence[str], *, outside: Path | None = None) -> list[Input]:
    """Return what `words` name, each thing once, folders sorted and with their subfolders.

    A word is a file, a folder, a pattern (`*`, `?`, `[...]`, `**`), or the number of a camera. Of folders and patterns
    only pictures and videos are taken, and nothing from inside the folder `outside` (where answers go), unless the word
    itself leads there.
    Raises ConfigError when a word names nothing.
    """
    found: dict[object, Input] = {}
    for word in words:
        items = list(_named_by(word, outside))
        if not items:
            raise ConfigError(
                f"'{word}' names no picture, video or camera",
                where=word,
                why=_why_nothing(word),
                fix='give pictures, videos, folders, patterns in quotes ("photos/*.jpg"), or a camera number (0)',
            )
        for item in items:
            found.setdefault(item.source if item.kind == 'camera' else item.source.resolve(), item)
    return list(found.values())


def _named_by(word: str, outside: Path | None) -> Iterator[Input]:
    path = Path(word)
    if path.is_dir():
        files: Iterable[Path] = sorted(file for file in path.rglob('*') if file.is_file())
    elif path.is_file():
        kind = 'video' if path.suffix.lower() in VIDEO_SUFFIXES else 'picture'
        yield Input(kind, path, Path(path.name))
        return
    elif word.isdecimal():
        yield Input('camera', int(word))
        return
    else:
        files = sorted(Path(file) for file in glob.glob(word, recursive=True))
    if outside is not None and not _folder_of(path).is_relative_to(outside.resolve()):
        files = [file for file in files if not file.resolve().is_relative_to(outside.resolve())]
    for file in files:
        if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file():
            yield Input('picture', file, _below(file, path))
        elif file.suffix.lower() in VIDEO_SUFFIXES and file.is_file():
            yield Input('video', file, _below(file, path))


def _folder_of(path: Path) -> Path:
    """Return the folder below which a folder or a pattern looks."""
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    return Path(*plain).resolve()


def _below(file: Path, word: Path) -> Path:
    """Return `file` as seen from the folder below which `word` looks; its name when a link or `..` led elsewhere."""
    file, folder = file.resolve(), _folder_of(word)
    return file.relative_to(folder) if file.is_relative_to(folder) else Path(file.name)


def _why_nothing(word: str) -> str:
    if Path(word).is_dir():
        return f'the folder holds no file with a suffix of {" ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)}'
    if glob.has_magic(word):
        return 'no picture or video fits the pattern'
    return f'there is no such file in {Path.cwd()}' if not Path(word).is_absolute() else 'there is no such file'


class OutputNames:
    """Names of answers under `folder`: they keep subfolders, never meet, and never hit an input.

    A file from a named folder keeps its place below it; files of one name from different places are told apart by the
    folders in which they differ.
    """

    def __init__(self, folder: Path, inputs: Sequence[Input]) -> None:
        self.folder = folder
        self._taken = {_same(item.source.resolve()) for item in inputs if isinstance(item.source, Path)}
        self._places: dict[Path, Path] = {}
        same_name: dict[str, list[Path]] = {}
        for item in inputs:
            if isinstance(item.source, Path):
                same_name.setdefault(_same(item.relative), []).append(item.source.resolve())
                self._places[item.source.resolve()] = item.relative.parent
        for files in same_name.values():
            if len(files) > 1:
                root = os.path.commonpath([file.parent for file in files])
                self._places |= {file: file.parent.relative_to(root) for file in files}

    def name(self, item: Input, suffix: str, *, tag: str = '') -> Path:
        """Return a free path for `item` that ends in `tag` and `suffix`; every call takes a new one."""
        original = item.source.resolve() if isinstance(item.source, Path) else Path(f'camera{item.source}')
        place = self.folder / self._places.get(original, Path())
        stems = [original.stem + tag, original.name.replace('.', '_') + tag, original.stem + tag + '_overlay']
        stems += [f'{stems[-1]}_{number}' for number in range(2, 1000)]
        for stem in stems:
            path = place / f'{stem}{suffix}'
            if _same(path.resolve()) not in self._taken:
                self._taken.add(_same(path.resolve()))
                return path
        raise ConfigError(
            f'no free name for the answer to {original.name}',
            where=str(place),
            why='a thousand names are taken',
            fix='choose another folder with --out',
        )


def _same(path: Path) -> str:
    return str(path).casefold()  # some file systems do not tell a.JPG from a.jpg
