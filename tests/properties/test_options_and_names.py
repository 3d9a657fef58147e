"""Properties of config options, class names and file names: whatever is written is what is read."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from tests.properties.settings import few
from vitdense.config.dump import config_text
from vitdense.config.from_text import read_config_text
from vitdense.config.overrides import apply_options, parse_value
from vitdense.config.run_config import RunConfig
from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.files.listing import as_text, walk
from vitdense.data.files.pairs import safe_below
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.unlabelled import ImageDataset
from vitdense.errors import ConfigError, DataError

plain = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=('Cs',)), max_size=12)
values = st.recursive(plain | words, lambda each: st.lists(each, max_size=3) | st.tuples(each, each), max_leaves=6)
keys = st.from_regex(r'[a-z][a-z_]{0,5}', fullmatch=True)
# what Linux allows in a name, but for a leading dot, and a backslash, which Windows reads as a folder
letters = st.characters(exclude_characters='/\0\\', exclude_categories=('Cs',), max_codepoint=0x2FFFF)
stems = st.text(letters, min_size=1, max_size=25).filter(lambda name: not name.startswith('.'))

parts = st.lists(st.sampled_from(['..', '.', '', 'a', 'b.png', '~', 'C:', 'http:', '...']), min_size=1, max_size=5)


@few
@given(values)
def test_a_value_is_read_back_from_an_option(value):
    assert parse_value(repr(value)) == value
    content = {'a': {'b': [0, 1]}, 'c': 0}
    apply_options(content, [f'a.b.1={value!r}', f'c={value!r}', f'+a.new={value!r}'])
    assert content == {'a': {'b': [0, value], 'new': value}, 'c': value}


@few
@given(st.text(max_size=30))
def test_any_text_is_a_value_and_any_option_is_applied_or_refused(text):
    parse_value(text)
    content = {'a': {'b': (0, 1)}, 'c': 0}
    for option in (text, f'a.{text}', f'{text}=1', f'c={text}', f'+{text}=1'):
        try:
            apply_options(content, [option])
        except ConfigError as error:
            assert error.fix and error.where


@few
@given(st.dictionaries(keys, st.dictionaries(keys, values, max_size=3) | values, max_size=4))
def test_a_config_is_read_back_from_its_text(content):
    cfg = RunConfig(content, 'a.py')
    assert read_config_text(config_text(cfg)) == content


@few
@given(parts.map('/'.join) | parts.map('\\'.join) | st.text(max_size=9))
def test_a_name_leads_nowhere_else(name):
    root = Path('/data/set')
    try:
        path = safe_below(root, name, where='test')
    except DataError:
        return
    assert os.path.normpath(path).startswith('/data/set')


def write_tree(root: Path, names: list[str]) -> list[str]:
    """Write an image and a label map for each name, in folders of odd names; return the names that are possible."""
    for number, name in enumerate(names):
        for folder, mode in (('images', 'RGB'), ('labels', 'L')):
            path = root / folder / f'class {number % 2}' / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (4, 3), 0 if mode == 'L' else (number, 0, 0)).save(path)
    return [f'class {number % 2}/{name}.png' for number, name in enumerate(names)]


@few
@given(st.lists(stems, min_size=2, max_size=4, unique_by=lambda name: name.casefold()))
def test_files_of_any_name_are_read_by_every_data_set(names):
    logging.getLogger('vitdense').setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            files = write_tree(root, names)
        except (OSError, UnicodeError):
            assume(False)
        red = {file: number for number, file in enumerate(files)}
        pixels = {sample.meta.image_id: int(sample.img[0, 0, 0]) for sample in ImageDataset('images', root=root)}
        assert pixels == red and sorted(walk(root / 'images').files) == sorted(files)
        by_class = ClassificationDataset('images', root=root)
        assert {s.meta.image_id: int(s.target.image_label) for s in by_class} == {f: int(f[6]) for f in files}
        pairs = SegmentationDataset('images', 'labels', root=root, classes=['a', 'b'])
        assert {s.meta.path: int(s.img[0, 0, 0]) for s in pairs} == {
            str(root / 'images' / f): k for f, k in red.items()
        }
        images = [dict(id=k, file_name=file, width=4, height=3) for file, k in red.items()]
        boxes = [dict(id=1, image_id=0, category_id=1, bbox=[0, 0, 2, 2], area=4, iscrowd=0)]
        coco = dict(images=images, annotations=boxes, categories=[dict(id=1, name='x')])
        (root / 'a.json').write_text(json.dumps(coco))
        actual = {
            int(sample.meta.image_id): int(sample.img[0, 0, 0])
            for sample in CocoDetection('a.json', 'images', root=root)
        }
        assert actual == {k: k for k in red.values()}


@few
@given(st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & set(name) and name not in (b'.', b'..')))
def test_names_that_are_no_text_are_shown_as_text(name):
    as_text(os.fsdecode(name)).encode()


@pytest.mark.parametrize('name', ['x' * 251, 'ü' * 125, '日' * 83])
def test_the_longest_names_are_read(tmp_path, name):
    (tmp_path / 'a').mkdir()
    Image.new('RGB', (2, 2)).save(tmp_path / 'a' / f'{name}.png')
    sample = ClassificationDataset('', root=tmp_path)[0]
    assert sample.meta.image_id == f'a/{name}.png' and torch.equal(sample.img, torch.zeros(3, 2, 2, dtype=torch.uint8))
