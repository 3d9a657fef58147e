"""A cache is the file it was made from, or it is not used."""

import json
import os

import numpy as np
import pytest
import torch

from vitdense.data.coco import cache as coco_cache
from vitdense.data.coco.cache import open_coco
from vitdense.data.coco.parse import read_coco
from vitdense.data.string_array import StringArray
from vitdense.storage.atomic import cache_folder


def content(label='a'):
    box = dict(bbox=[1, 2, 3.25, 4], area=9, iscrowd=0, segmentation=[[1, 2, 4, 2, 4, 6]])
    return dict(
        images=[dict(id=name, file_name=f'{name}.png', width=10, height=20) for name in (5, 'b', 7)],
        categories=[dict(id=3, name=label)],
        annotations=[dict(id=k, image_id=i, category_id=3, **box) for k, i in ((1, 7), (2, 5), (3, 7))],
    )


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_cache, 'SETTLED', -(10**10))  # as if the file had been written long ago
    (tmp_path / 'a.json').write_text(json.dumps(content()))
    return tmp_path / 'a.json'


@pytest.fixture
def reads(monkeypatch):
    """How often an annotation file was really read."""
    calls = []
    monkeypatch.setattr(coco_cache, 'read_coco', lambda *a, **k: calls.append(a) or read_coco(*a, **k))
    return calls


def same(one, other):
    for first, second in zip(one, other, strict=True):
        if isinstance(first, StringArray):
            same(first, second)
        else:
            assert first.dtype == second.dtype and np.array_equal(first, second)


@pytest.mark.parametrize('masks', [False, True])
def test_what_comes_out_is_what_was_read(path, tmp_path, reads, masks):
    folder = tmp_path / 'cache'
    expected = read_coco(path, masks=masks)
    for _ in range(2):
        arrays, context = open_coco(path, masks=masks, cache=folder, least=0)
        same(arrays, expected[0])
        assert context == expected[1]
    assert len(reads) == 1 and len(list(folder.iterdir())) == 1
    assert not arrays.boxes.flags.writeable  # mapped: all workers read the same memory
    assert arrays.ids.tolist() == [2, 1, 3] and arrays.starts.tolist() == [0, 1, 1, 3]
    assert [json.loads(arrays.image_ids[row]) for row in range(3)] == [5, 'b', 7]
    assert (arrays.segments[2] == '[[1,2,4,2,4,6]]') if masks else len(arrays.segments.ends) == 0


def test_small_files_are_not_cached_and_cache_false_writes_none(path, tmp_path, reads):
    open_coco(path, cache=tmp_path / 'cache')
    open_coco(path, cache=False, least=0)
    assert len(reads) == 2 and sorted(tmp_path.iterdir()) == [path]


def test_a_changed_file_is_read_again_whatever_its_size_and_time(path, tmp_path, reads):
    folder = tmp_path / 'cache'
    open_coco(path, cache=folder, least=0)
    before = os.stat(path)
    path.write_text(json.dumps(content('b')))  # as long as it was
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size and os.stat(path).st_mtime_ns == before.st_mtime_ns
    assert open_coco(path, cache=folder, least=0)[1].names == ['b'] and len(reads) == 2
    assert len(list(folder.iterdir())) == 1  # the new one took the place of the old


def test_a_file_that_changed_just_now_is_compared_by_content(path, tmp_path, monkeypatch, reads):
    folder = tmp_path / 'cache'
    open_coco(path, cache=folder, least=0)
    stamp = coco_cache._stamp(os.stat(path))
    path.write_text(json.dumps(content('b')))
    monkeypatch.setattr(coco_cache, '_stamp', lambda state: stamp)  # a clock too slow to tell the two apart
    monkeypatch.setattr(coco_cache, 'SETTLED', 2 * 10**9)
    assert open_coco(path, cache=folder, least=0)[1].names == ['b']


def test_the_same_content_elsewhere_in_time_is_trusted(path, tmp_path, reads):
    folder = tmp_path / 'cache'
    open_coco(path, cache=folder, least=0)
    os.utime(path, ns=(1, 1))
    open_coco(path, cache=folder, least=0)
    assert len(reads) == 1


@pytest.mark.parametrize('harm', ['cut', 'magic', 'header', 'empty'])
def test_a_damaged_cache_is_not_used(path, tmp_path, reads, harm):
    folder = tmp_path / 'cache'
    open_coco(path, cache=folder, least=0)
    (created,) = folder.iterdir()
    data = created.read_bytes()
    spoiled = {'cut': data[:-1], 'magic': b'x' + data[1:], 'header': data[:30] + b'\xff' + data[31:], 'empty': b''}
    created.write_bytes(spoiled[harm])
    assert open_coco(path, cache=folder, least=0)[1].names == ['a'] and len(reads) == 2


def test_a_cache_that_cannot_be_written_is_done_without(path, tmp_path, reads):
    (tmp_path / 'file').write_text('')
    arrays, _ = open_coco(path, cache=tmp_path / 'file', least=0)  # no folder can be made there
    assert arrays.ids.tolist() == [2, 1, 3]


def test_the_folder_is_the_users_never_that_of_the_data(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'x'))
    assert cache_folder() == tmp_path / 'x' / 'vitdense'
    monkeypatch.setenv('VITDENSE_CACHE', str(tmp_path / 'y'))
    assert cache_folder() == tmp_path / 'y'


def test_loader_workers_read_the_mapped_arrays(path, tmp_path):
    arrays, _ = open_coco(path, cache=tmp_path / 'cache', least=0)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, row):
            return torch.from_numpy(arrays.boxes[row].copy())

    loader = torch.utils.data.DataLoader(Rows(), batch_size=3, num_workers=1)
    assert next(iter(loader)).tolist() == [[1, 2, 3.25, 4]] * 3
