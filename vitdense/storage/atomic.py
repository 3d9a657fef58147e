"""Atomic writing of files, hashes of files, free disk space and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from vitdense.errors import DiskError

logger = logging.getLogger('vitdense')
Row = dict[str, float | int | None]


@contextlib.contextmanager
def atomic_path(path: Path, *, before_replace: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path; the file written there is synced to disk and renamed to `path` on leaving.

    `before_replace` is called with the temporary path between both. After any error `path` is as it was before and the
    temporary file is deleted.
    """
    temporary = path.with_name(f'{path.name}.tmp.{os.getpid()}')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        if before_replace is not None:
            before_replace(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def disk_error(path: Path, error: Exception, *, what: str = '') -> DiskError:
    """Return the error for a file that cannot be written; `what` is how messages call it."""
    return DiskError(
        f'could not write {what or repr(path.name)}',
        where=str(path),
        why=disk_problem(error),
        fix=f'{disk_fix(error)}; an earlier file there is unchanged',
    )


def disk_fix(error: Exception, elsewhere: str = 'choose another folder, one that you may write to') -> str:
    """Return what helps against a failed write: space where the disk is full, else what `elsewhere` says."""
    return 'free some space on this disk' if disk_problem(error) == 'disk full' else elsewhere


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk under `folder`; 0 where they are unknown."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def format_bytes(size: float) -> str:
    for unit in ('B', 'kB', 'MB'):
        if size < 1000:
            return f'{size:.0f} {unit}'
        size /= 1000
    return f'{size:.1f} GB'


def make_folder(path: Path, *, writable: bool = False) -> None:
    """Create a folder for results, if missing; with `writable`, see that a file can be made in it. Raises DiskError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if writable:
            tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        what = 'write to' if os.path.isdir(path) else 'make'
        raise DiskError(
            f"cannot {what} the folder '{path}'", where=str(path), why=str(error), fix=disk_fix(error)
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically. Raises OSError."""
    with atomic_path(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as file:
        file.write(text)


def try_write_text(path: Path, text: str, *, warn: bool = True) -> bool:
    """Write a small text file; log a warning and return False where that fails."""
    try:
        write_text(path, text)
    except OSError as error:
        if warn:
            logger.warning('%s: %s not written; going on', disk_problem(error), path.name)
        return False
    return True


def disk_problem(error: Exception) -> str:
    """Return the reason of a failed write, in a few words."""
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) or 'No space left' in str(error)
    return 'disk full' if full else getattr(error, 'strerror', None) or str(error).strip().partition('\n')[0][:200]


def is_of_disk(error: Exception) -> bool:
    """Whether a failed write was refused by the disk or its permissions, and not by a network."""
    refusals = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
    return isinstance(error, OSError) and error.errno in refusals


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it survive a power failure; only POSIX systems can open one."""
    if os.name != 'posix':
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def finite(row: Mapping[str, Any]) -> Row:
    """Return `row` with plain Python numbers, and None for what is not finite."""
    numbers = {key: value.item() if hasattr(value, 'item') else value for key, value in row.items()}
    return {
        key: value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else None
        for key, value in numbers.items()
    }


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError, ValueError."""
    return json.loads(path.read_text(encoding='utf-8'))


def parse_json(text: str) -> Any:
    """Return the content of JSON of any origin. Raises ValueError, also for NaN and Infinity."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f'{name} is no number of JSON')

    return json.loads(text, parse_constant=refuse)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write valid JSON (no NaN), atomically. Raises OSError."""
    write_text(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """Return valid JSON (no NaN) for a file; sequences of other types become lists."""
    return json.dumps(content, indent=2, allow_nan=False, default=list) + '\n'


def cache_folder() -> Path:
    """Return the cache folder of the user: VITDENSE_CACHE, or `vitdense` below XDG_CACHE_HOME or ~/.cache."""
    own, base = os.environ.get('VITDENSE_CACHE'), os.environ.get('XDG_CACHE_HOME')
    return Path(own).expanduser() if own else Path(base or '~/.cache').expanduser() / 'vitdense'
