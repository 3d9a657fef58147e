"""Missing files are reported before they are opened, with existing files of similar names."""

import os
import unicodedata

import pytest

from vitdense.data.files.similar_names import missing_files, near_match


@pytest.fixture
def tree(tmp_path):
    def touch(*names):
        for name in names:
            path = tmp_path / 'photos' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'')
        return tmp_path / 'photos'

    return touch


def missing(root, *names):
    return missing_files(root, map(os.fsencode, names))


def test_files_that_are_not_there_are_known(tree):
    root = tree('a.png', 'sub/b.png', 'sub/deep/c.png', 'ü.png')
    (root / 'link.png').symlink_to(root / 'a.png')
    (root / 'broken.png').symlink_to(root / 'nothing.png')
    there = ['a.png', 'sub/b.png', 'sub/deep/c.png', './a.png', 'sub//b.png', 'link.png', 'ü.png']
    absent = ['b.png', 'sub/c.png', 'nowhere/a.png', 'sub', 'broken.png', 'a\0b.png', 'A.png']
    assert missing(root, *there) == []
    assert missing(root, *there, *absent) == absent
    assert missing(root / 'nowhere', 'a.png') == ['a.png'] and missing(root) == []


@pytest.mark.parametrize(
    ('there', 'name', 'words'),
    [
        ('IMG_1.JPG', 'img_1.jpg', ['IMG_1.JPG is there', 'upper and lower case']),
        ('Sub/1.png', 'sub/1.png', ['Sub/1.png is there', 'upper and lower case']),
        ('1.png', '1.jpg', ['1.png is there', 'another ending']),
        ('my cat.png', 'my%20cat.png', ['my cat.png is there', '%20 is a space']),
        ('a%20b.png', 'a b.png', ['a%20b.png is there', '%20 is a space']),
        (unicodedata.normalize('NFD', 'Zürich.png'), unicodedata.normalize('NFC', 'Zürich.png'), ['form NFD']),
        (unicodedata.normalize('NFC', 'Zürich.png'), unicodedata.normalize('NFD', 'Zürich.png'), ['form NFC']),
        ('0.png', 'photos/0.png', ['give the folder', '0.png is there']),
        ('0.png', 'train/0.png', ['0.png is there: leave out train/']),
        ('train/0.png', '0.png', ['train/0.png is there: give the folder']),
    ],
)
def test_a_missing_file_has_a_hint_at_a_similar_one(tree, there, name, words):
    root = tree(there)
    assert missing(root, name) == [name]
    message = near_match(root, name)
    assert all(word in message for word in words)


def test_a_folder_above_is_found(tree):
    root = tree('0.png')
    assert near_match(root, 'photos/0.png') == f'{root}/0.png is there: give the folder {root.parent}'
    (root / 'empty').mkdir()
    assert f'give the folder {root}' in near_match(root / 'empty', '0.png')


def test_unrelated_files_are_no_hint(tree):
    root = tree('0.png')
    for name in ('9.gif', 'a/b/c.png', 'a\0b', '/etc/nothing', '', 'a' * 5000, 'a/' * 900):
        assert near_match(root, name) == ''
    assert near_match(root / 'nowhere', '0.png') == ''
