"""Write files whole or not at all, make folders, and hash files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdense.errors import DiskError

logger = logging.getLogger('vitdense')
Row = dict[str, float | int | None]


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk under `folder`; 0 where it cannot be asked."""
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


def make_folder(path: Path) -> None:
    """Make a folder for results, unless it is there. Raises DiskError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"cannot make the folder '{path}'", where=str(path), why=str(error), fix='choose a folder you may write to'
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically. Raises OSError; then the file is as it was before."""
    temporary = path.with_name(f'{path.name}.tmp.{os.getpid()}')
    try:
        with open(temporary, 'w', encoding='utf-8', newline='') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def try_write_text(path: Path, text: str, *, warn: bool = True) -> bool:
    """Write a small text file that is not worth a run: a failure is a warning. Return whether it was written."""
    try:
        write_text(path, text)
    except OSError as error:
        if warn:
            logger.warning('%s: %s not written; going on', disk_problem(error), path.name)
        return False
    return True


def disk_problem(error: OSError) -> str:
    """Return in a few words what is wrong with the disk."""
    return 'disk full' if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut."""
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
    """Return `row` with plain Python numbers; what is not finite is None."""
    numbers = {key: value.item() if hasattr(value, 'item') else value for key, value in row.items()}
    return {
        key: value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else None
        for key, value in numbers.items()
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write valid JSON (no NaN), atomically. Raises OSError."""
    write_text(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """Return valid JSON (no NaN) for a file."""
    return json.dumps(content, indent=2, allow_nan=False) + '\n'


def cache_folder() -> Path:
    """Return the folder for caches, which need not exist."""
    own, base = os.environ.get('VITDENSE_CACHE'), os.environ.get('XDG_CACHE_HOME')
    return Path(own).expanduser() if own else Path(base or '~/.cache').expanduser() / 'vitdense'
