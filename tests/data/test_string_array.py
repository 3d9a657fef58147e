"""Strings in one array of bytes, and data sets whose workers share them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from vitdense.data.classification import ClassificationDataset
from vitdense.data.files.listing import iterate_list
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.string_array import StringArray, StringCollector, texts
from vitdense.data.unlabelled import ImageDataset

WORDS = ['a', '', 'ü日', os.fsdecode(b'caf\xe9'), 'b' * 300]


def test_strings_are_read_back():
    words = texts(WORDS)
    assert [words[row] for row in range(5)] == list(words.all()) == WORDS
    assert list(words.all_coded()) == [os.fsencode(word) for word in WORDS] and words.coded(2) == 'ü日'.encode()
    assert list(words.take(np.array([4, 2])).all()) == [WORDS[4], WORDS[2]]
    assert words.take(np.arange(5)) is words
    assert list(texts([]).all()) == [] and texts([]).ends.shape == (0,)


def test_a_long_string_makes_no_other_longer():
    collector = StringCollector()
    for word in ('x' * 10_000, *'ab' * 500):
        collector.append(word)
    assert collector.array().data.nbytes == 11_000


@pytest.fixture
def root(tmp_path):
    for kind in ('images', 'masks'):
        for name in ('a/0.png', 'a/1.png', 'b/2.png'):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new('L', (4, 3)).save(tmp_path / kind / name)
    (tmp_path / 'list.txt').write_text('a/0.png\ta\n\nb/2.png b\n')
    return tmp_path


def test_no_data_set_keeps_a_python_object_for_each_image(root):
    data = [
        ClassificationDataset('images', root=root),
        ClassificationDataset('images', root=root, split='list.txt'),
        ImageDataset('images', root=root),
        SegmentationDataset('images', 'masks', root=root, classes=['x', 'y']),
    ]
    for each in data:
        large = [
            name for name, value in vars(each).items() if isinstance(value, list | dict) and len(value) == len(each)
        ]
        assert large == [] or set(large) <= {'metainfo', '_number'}
        assert sum(isinstance(value, StringArray) for value in vars(each).values()) >= 1


def test_lists_are_read_line_by_line(root):
    lines = iterate_list(root / 'list.txt')
    assert next(lines) == (1, 'a/0.png\ta') and list(lines) == [(3, 'b/2.png b')]
