"""Downloads from a local server that breaks off, supports no ranges, sends something else, or is not there."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vitdense.errors import CheckpointError, DiskError, FullDiskError
from vitdense.storage import download as downloading
from vitdense.storage.download import download

CONTENT = bytes(range(256)) * 400


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every path but /none; `most` bytes in a connection, with or without ranges."""

    content, most, ranges, tag = CONTENT, len(CONTENT), True, ''

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}/file.pth'
        self.requested: list[str | None] = []  # the ranges of all requests


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get('Range')
        self.server.requested.append(wanted)
        content = self.server.content
        start = int(wanted.removeprefix('bytes=').rstrip('-')) if wanted and self.server.ranges else 0
        if self.headers.get('If-Range', self.server.tag) != self.server.tag:
            start = 0
        if self.path == '/none':
            return self.send_error(404)
        if start >= len(content):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(content)}')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(content) - start))
        if self.server.tag:
            self.send_header('ETag', self.server.tag)
        self.end_headers()
        self.wfile.write(content[start : start + self.server.most])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def sha256(content: bytes = CONTENT) -> dict[str, str]:
    return {'sha256': hashlib.sha256(content).hexdigest()}


def test_a_complete_file_is_checked_and_put_in_place(server, tmp_path):
    recorded = []
    path = tmp_path / 'new' / 'file.pth'
    hashes = sha256() | {'md5': hashlib.md5(CONTENT).hexdigest()}
    download(server.url, path, size=len(CONTENT), hashes=hashes, on_progress=lambda *state: recorded.append(state))
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ['file.pth']
    assert recorded[-1] == (len(CONTENT), len(CONTENT)) and server.requested == [None]
    download(server.url, tmp_path / 'short.pth', hashes={'sha256': sha256()['sha256'][:8]})


def test_a_connection_that_breaks_off_is_resumed(server, tmp_path):
    server.most = 40_000
    download(server.url, tmp_path / 'file.pth', hashes=sha256())
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT
    assert server.requested == [None, 'bytes=40000-', 'bytes=80000-']


def test_a_file_that_stays_cut_off_is_no_file_and_goes_on_later(server, tmp_path):
    server.most, server.ranges = 30_000, False
    with pytest.raises(CheckpointError, match='cut off after 30 kB of 102 kB') as caught:
        download(server.url, tmp_path / 'file.pth')
    assert 'file.pth.part' in caught.value.fix and not (tmp_path / 'file.pth').exists()
    server.most, server.ranges = len(CONTENT), True
    download(server.url, tmp_path / 'file.pth', hashes=sha256())
    assert server.requested[-1] == 'bytes=30000-' and (tmp_path / 'file.pth').read_bytes() == CONTENT


def test_a_file_that_was_replaced_meanwhile_is_fetched_from_its_beginning(server, tmp_path):
    """Otherwise the parts of two files would be put together where no hash is stated."""
    server.most, server.ranges, server.tag = 30_000, False, '"one"'
    with pytest.raises(CheckpointError, match='cut off'):
        download(server.url, tmp_path / 'file.pth')
    server.most, server.ranges, server.tag, server.content = len(CONTENT), True, '"two"', CONTENT[::-1]
    download(server.url, tmp_path / 'file.pth')
    assert (tmp_path / 'file.pth').read_bytes() == CONTENT[::-1]
    assert [file.name for file in tmp_path.iterdir()] == ['file.pth']


@pytest.mark.parametrize('extra', [b'', b'more'])
def test_a_finished_part_is_not_fetched_again_and_a_longer_one_is(server, tmp_path, extra):
    (tmp_path / 'file.pth.part').write_bytes(CONTENT + extra)
    download(server.url, tmp_path / 'file.pth', hashes=sha256())
    assert len(server.requested) == 1 + bool(extra) and (tmp_path / 'file.pth').read_bytes() == CONTENT


@pytest.mark.parametrize('expected', [{'size': 7}, {'hashes': {'sha256': '0' * 8}}, {'hashes': {'md5': '1' * 32}}])
def test_another_file_is_refused_and_leaves_nothing(server, tmp_path, expected):
    with pytest.raises(CheckpointError, match='is not the file that was expected') as caught:
        download(server.url, tmp_path / 'file.pth', **expected)
    assert caught.value.where == server.url and list(tmp_path.iterdir()) == []


def test_no_space_is_known_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, 'free_bytes', lambda folder: 50_000)
    with pytest.raises(FullDiskError, match='no space for 102 kB') as caught:
        download(server.url, tmp_path / 'file.pth')
    assert 'VITDENSE_CACHE' in caught.value.fix and list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_a_disk_that_becomes_full_keeps_what_has_arrived(server, tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(downloading.os, 'fsync', full)
    with pytest.raises(FullDiskError, match='no space left after 102 kB') as caught:
        download(server.url, tmp_path / 'file.pth')
    assert 'goes on from there' in caught.value.fix and (tmp_path / 'file.pth.part').exists()


def test_a_folder_that_cannot_be_written_is_an_error(server, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(DiskError):
        download(server.url, tmp_path / 'file' / 'file.pth')


def test_what_cannot_be_reached_names_the_place_for_a_copy(server, tmp_path):
    path: Path = tmp_path / 'file.pth'
    with pytest.raises(CheckpointError, match="could not fetch 'file.pth'") as caught:
        download(server.url.replace('file.pth', 'none'), path)
    assert '404' in caught.value.why and str(path) in caught.value.fix
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match='could not fetch') as caught:
        download(server.url, path)
    assert caught.value.where == server.url and str(path) in caught.value.fix and 'refused' in caught.value.why
