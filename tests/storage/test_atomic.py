"""Errors of failed writes: the reason, and the remedy that fits it."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from vitdense.errors import DiskError
from vitdense.storage.atomic import disk_error, make_folder
from vitdense.visualize.image_files import write_image


@pytest.mark.parametrize(
    ('number', 'full'),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.ENOENT, False), (errno.EACCES, False), (errno.ENOTDIR, False)],
)
def test_space_is_asked_for_on_a_full_disk_only(number: int, full: bool) -> None:
    error = disk_error(Path('a/b.json'), OSError(number, 'reason'))
    assert ('free some space' in error.fix, 'another folder' in error.fix) == (full, not full)
    assert error.why == ('disk full' if full else 'reason')


def test_an_image_in_a_folder_that_cannot_be_is_no_question_of_space(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(DiskError, match=r'cannot write a\.jpg') as caught:
        write_image(pixels, tmp_path / 'file' / 'a.jpg')
    assert caught.value.fix.startswith('choose another folder') and str(tmp_path / 'file') in caught.value.why
    with pytest.raises(DiskError) as caught:
        write_image(np.zeros((1, 70_000), np.uint8), tmp_path / 'wide.jpg')
    assert caught.value.fix == 'choose another format, such as .png'


def test_a_folder_is_made_and_tried(tmp_path: Path) -> None:
    make_folder(tmp_path / 'new' / 'deep', writable=True)
    assert list((tmp_path / 'new' / 'deep').iterdir()) == []
    (tmp_path / 'file').write_text('')
    with pytest.raises(DiskError, match='cannot make the folder'):
        make_folder(tmp_path / 'file', writable=True)


@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='needs /proc')
def test_a_folder_that_takes_no_files_is_noticed_when_it_is_made() -> None:
    make_folder(Path('/proc'))
    with pytest.raises(DiskError, match="cannot write to the folder '/proc'"):
        make_folder(Path('/proc'), writable=True)
