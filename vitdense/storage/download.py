"""Download of one file over HTTP: resumed where an earlier download stopped, checked, and complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from vitdense.errors import CheckpointError, DiskError, FullDiskError, cause_of
from vitdense.storage.atomic import disk_error, disk_problem, format_bytes, free_bytes, make_folder, sync_folder

CHUNK = 1 << 20  # bytes read at a time
ATTEMPTS = 5  # connections in a row, of which each brings some bytes
TIMEOUT = 30  # seconds without a byte
Progress = Callable[[int, int | None], None]  # of bytes that are there, and of all of them where the server says so


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    hashes: Mapping[str, str] | None = None,
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Fetch `url` to `path`, whose `size` and `hashes` (see `check_file`) are those that the publisher states.

    What has arrived lies in `PATH.part` until it is complete and checked; the next call goes on from there, or begins
    anew where the server has another file by now (its ETag lies in `PATH.part.etag`).
    Raises CheckpointError when the server cannot be reached, the file is cut off or not the one that is expected;
    DiskError when it cannot be written, FullDiskError before the first byte where the disk has no room for it.
    """
    make_folder(path.parent)
    part = path.with_name(f'{path.name}.part')
    try:
        for _ in range(ATTEMPTS):
            before = _size(part)
            total = _receive(url, path, part, size, on_progress)
            if total is None or _size(part) >= total or _size(part) == before:
                break
    except OSError as error:
        if isinstance(error, urllib.error.URLError | TimeoutError | ConnectionError):
            raise unreachable(url, path, error) from None
        raise _write_error(part, error) from error
    except http.client.HTTPException as error:
        raise unreachable(url, path, error) from None
    if total is not None and _size(part) < total:
        raise CheckpointError(
            f'the download was cut off after {format_bytes(_size(part))} of {format_bytes(total)}',
            where=url,
            why='the server closed the connection too early, several times',
            fix=f'run the command again: it goes on from {part}',
        )
    try:
        check_file(part, size=size, hashes=hashes, where=url)
    except CheckpointError:
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise
    os.replace(part, path)
    _tag_file(part).unlink(missing_ok=True)
    sync_folder(path.parent)


def check_file(path: Path, *, size: int | None, hashes: Mapping[str, str] | None, where: str) -> None:
    """Raise CheckpointError unless a file has this size and these hashes: {'sha256': hexadecimal digits, 'md5': ...}.

    A hash may be its first digits. None is not checked.
    """
    if size is not None and path.stat().st_size != size:
        raise _other_file(path, where, f'it has {path.stat().st_size:,} bytes and not {size:,}')
    for kind, digits in (hashes or {}).items():
        with open(path, 'rb') as file:
            actual = hashlib.file_digest(file, kind).hexdigest()
        if not actual.startswith(digits):
            raise _other_file(path, where, f'its {kind} is {actual} and not {digits}')


def reach(url: str) -> None:
    """Raise OSError at once where there is no network: the Hub's client retries for most of a minute, with warnings."""
    with contextlib.suppress(urllib.error.HTTPError):  # the server is reachable; the client handles HTTP errors
        urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=10).close()


def unreachable(url: str, path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that cannot be fetched; `path` is where a copy may be put."""
    status = f'the server returned {error.code} {error.reason}' if isinstance(error, urllib.error.HTTPError) else ''
    return CheckpointError(
        f"could not fetch '{path.name}'",
        where=url,
        why=status or cause_of(error),
        fix=f'download it on a machine with network, and put it here:\n{path}',
    )


def _other_file(path: Path, where: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"'{path.name.removesuffix('.part')}' is not the file that was expected",
        where=where,
        why=f'{why}: it was damaged on the way, or its publisher has replaced it',
        fix='try again; where that does not help, compare with the page of the publisher',
    )


def _receive(url: str, path: Path, part: Path, size: int | None, on_progress: Progress) -> int | None:
    """Append to `part` what the server sends in one connection; return the size of the whole file, if it is known."""
    done = _size(part)
    request = urllib.request.Request(url, headers={'User-Agent': 'vitdense'})
    if done:
        request.add_header('Range', f'bytes={done}-')
        if _tag_file(part).is_file():
            request.add_header('If-Range', _tag_file(part).read_text(encoding='latin-1'))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
            raise
        error.close()
        if error.headers.get('Content-Range', '').endswith(f'/{done}'):  # nothing is missing
            return done
        part.unlink()
        return _receive(url, path, part, size, on_progress)
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0  # the server sends the whole file
        length = response.headers.get('Content-Length')
        total = done + int(length) if length and length.isdecimal() else size
        _check_space(part, (total or 0) - done)
        _keep_tag(part, response.headers.get('ETag', ''))
        with open(part, 'r+b' if done else 'wb') as file:
            file.truncate(done)
            file.seek(done)
            _copy(response, file, done, total, on_progress)
    return total


def _tag_file(part: Path) -> Path:
    return part.with_name(f'{part.name}.etag')


def _keep_tag(part: Path, tag: str) -> None:
    """Keep the strong ETag of the file that `part` is a part of; without one, the next request cannot name it."""
    if tag.startswith('"'):
        _tag_file(part).write_text(tag, encoding='latin-1')
    else:
        _tag_file(part).unlink(missing_ok=True)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, done: int, total: int | None, report: Progress) -> None:
    """Write what arrives; a connection that breaks off ends it, and what has arrived is kept."""
    chunk = b'...'
    while chunk:
        try:
            chunk = response.read(CHUNK)
        except (ConnectionError, TimeoutError, ssl.SSLError, http.client.IncompleteRead):
            chunk = b''
        file.write(chunk)
        done += len(chunk)
        report(done, total)
    file.flush()
    os.fsync(file.fileno())


def _check_space(part: Path, needed: int) -> None:
    free = free_bytes(part.parent)
    if free and needed > free:
        raise FullDiskError(
            f'no space for {format_bytes(needed)}',
            where=str(part.parent),
            why=f'{format_bytes(free)} are free',
            fix='free some space, or set VITDENSE_CACHE to a folder on a larger disk',
        )


def _write_error(part: Path, error: OSError) -> DiskError:
    if disk_problem(error) == 'disk full':
        return FullDiskError(
            f'no space left after {format_bytes(_size(part))}',
            where=str(part),
            why='disk full',
            fix='free some space and run the command again: it goes on from there;\n'
            'or set VITDENSE_CACHE to a folder on a larger disk',
        )
    return disk_error(part, error)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
