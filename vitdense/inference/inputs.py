"""Inputs of a command line (images, folders, globs, videos, cameras, streams), and names of output files."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vitdense.data.files.listing import walk
from vitdense.data.files.opening import IMAGE_SUFFIXES, begins_like_image
from vitdense.errors import ConfigError
from vitdense.video.formats import VIDEO_SUFFIXES, is_address, is_video, opens_as_video, source_name

logger = logging.getLogger('vitdense')


class Input(NamedTuple):
    """An image, video, camera or stream."""

    kind: Literal['image', 'video', 'camera', 'stream', 'unusable']
    source: Path | int | str  # a file, the number of a camera, or the address of a stream
    relative: Path = Path()  # the file below the folder or pattern that led to it; of a file its name
    error: ConfigError | None = None  # why it is unusable

    @property
    def name(self) -> str:
        return source_name(self.source)

    @property
    def file(self) -> str:
        """The path, or the name of a camera or stream."""
        return str(self.source) if isinstance(self.source, Path) else self.name


def find_inputs(words: Sequence[str], *, outside: Path | None = None) -> list[Input]:
    """Return the inputs that `words` name, each once, folders sorted and with their subfolders.

    A word is a file, a folder, a pattern (`*`, `?`, `[...]`, `**`), the number of a camera, or the address of a stream.
    Images and videos are recognised by suffix, and files of other suffixes by content; other files of folders and
    patterns are left out and listed in the log. Nothing is taken from inside the folder `outside` (for outputs), unless
    the word itself leads there. A word that names nothing is an 'unusable' input; ConfigError is raised where no word
    names anything.
    """
    inputs: dict[object, Input] = {}
    for word in words:
        for item in list(_named_by(word, outside)) or [_unusable(word)]:
            inputs.setdefault(item.source.resolve() if isinstance(item.source, Path) else item.source, item)
    items = list(inputs.values())
    if all(item.kind == 'unusable' for item in items):
        raise items[0].error
    return items


def _named_by(word: str, outside: Path | None) -> Iterator[Input]:
    if is_address(word):
        yield Input('stream', word)
        return
    path, camera = Path(word), re.fullmatch(r'(?:/dev/video)?([0-9]+)', word)
    if path.is_dir():
        files = [path / name for name in walk(path, follow_links=True, on_error=_warn_unreadable).files]
    elif path.is_file():
        yield Input(_kind_of(path, by_content=True) or 'image', path, Path(path.name))
        return
    elif camera:
        yield Input('camera', int(camera[1]))
        return
    else:
        files = sorted(Path(file) for file in glob.glob(word, recursive=True))
    if outside is not None and not _folder_of(path).is_relative_to(outside.resolve()):
        files = [file for file in files if not file.resolve().is_relative_to(outside.resolve())]
    left_out = []
    for file in files:
        kind = _kind_of(file)
        if kind is not None:
            yield Input(kind, file, _below(file, path))
        elif not file.is_dir():
            left_out.append(str(file.relative_to(path) if path.is_dir() else file))
    if left_out and (path.is_dir() or glob.has_magic(word)):
        names = ', '.join(left_out[:5]) + (f' and {len(left_out) - 5} more' if len(left_out) > 5 else '')
        logger.info('%s: left out, neither image nor video: %d files, %s', word, len(left_out), names)


def _kind_of(file: Path, *, by_content: bool = False) -> Literal['image', 'video'] | None:
    """Return the kind of a file by its content; None for other files.

    An image suffix is believed unless `by_content`: such a file is opened soon, and may prove to be a video then.
    """
    if not file.is_file():  # a pipe or a device may never end
        return None
    suffix = file.suffix.lower()
    listed = 'image' if suffix in IMAGE_SUFFIXES else 'video' if suffix in VIDEO_SUFFIXES else None
    if listed == 'image' and not by_content:
        return listed
    if is_video(file):
        return 'video'
    if begins_like_image(file):
        return 'image'
    return listed or ('video' if by_content and opens_as_video(file) else None)


def _warn_unreadable(error: OSError) -> None:
    logger.warning('%s: a folder that cannot be read is left out: %s', error.filename, error.strerror)


def _folder_of(path: Path) -> Path:
    """Return the folder below which a folder or a pattern looks."""
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    return Path(*plain).resolve()


def _below(file: Path, word: Path) -> Path:
    """Return `file` as seen from the folder below which `word` looks; its name when a link or `..` led elsewhere."""
    file, folder = file.resolve(), _folder_of(word)
    return file.relative_to(folder) if file.is_relative_to(folder) else Path(file.name)


def _unusable(word: str) -> Input:
    """Return the unusable input of a word that names nothing, with the reason."""
    path = Path(word)
    if path.is_dir():
        why = f'no file in the folder is an image ({" ".join(IMAGE_SUFFIXES)}) or a video'
    elif path.exists():
        why = 'it is no regular file: a pipe or a device may never end'
    elif glob.has_magic(word):
        why = 'no image or video fits the pattern'
    else:
        why = 'there is no such file' + ('' if path.is_absolute() else f' in {Path.cwd()}')
    error = ConfigError(
        f"'{word}' names no image, video or camera",
        where=word,
        why=why,
        fix='give images, videos, folders, patterns in quotes ("photos/*.jpg"), or a camera number (0)',
    )
    return Input('unusable', path, error=error)


class OutputNames:
    """Names of output files below `folder`: they keep subfolders, are unique, and are never those of inputs.

    A file from a named folder keeps its place below it; files of one name from different folders get these folders
    before their names.
    """

    def __init__(self, folder: Path, inputs: Sequence[Input]) -> None:
        self.folder = folder
        self._taken = {_same(item.source.resolve()) for item in inputs if isinstance(item.source, Path)}
        self._subfolders: dict[Path, Path] = {}
        same_name: dict[str, list[Path]] = {}
        for item in inputs:
            if isinstance(item.source, Path):
                same_name.setdefault(_same(item.relative), []).append(item.source.resolve())
                self._subfolders[item.source.resolve()] = item.relative.parent
        for files in same_name.values():
            if len(files) > 1:
                root = os.path.commonpath([file.parent for file in files])
                self._subfolders |= {file: file.parent.relative_to(root) for file in files}
        below = {
            folder / each
            for output_folder in self._subfolders.values()
            for each in (output_folder, *output_folder.parents)
        }
        self._taken |= {_same(each.resolve()) for each in below}  # a folder for outputs is no name of a file

    def name(self, item: Input, suffix: str, *, tag: str = '') -> Path:
        """Return a free path for `item` that ends in `tag` and `suffix`; every call takes a new one."""
        original = item.source.resolve() if isinstance(item.source, Path) else Path(_plain(item.name))
        output_folder = self.folder / self._subfolders.get(original, Path())
        stems = [original.stem + tag, original.name.replace('.', '_') + tag, original.stem + tag + '_overlay']
        stems += [f'{stems[-1]}_{number}' for number in range(2, 1000)]
        for stem in stems:
            path = output_folder / f'{stem}{suffix}'
            if _same(path.resolve()) not in self._taken:
                self._taken.add(_same(path.resolve()))
                return path
        raise ConfigError(
            f'no free name for the output of {original.name}',
            where=str(output_folder),
            why='a thousand files of this name were written',
            fix='choose another folder with --out',
        )


def _plain(name: str) -> str:
    """Return a name of a camera or stream as that of a file."""
    return re.sub(r'[^\w-]+', '_', name.replace('camera ', 'camera')).strip('_')


def _same(path: Path) -> str:
    return str(path).casefold()  # some file systems ignore case
