"""Data sets in shards give the batches of the files, in every order, for any number of workers and after a resume."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves

from tools import shards as tool
from vitdense.config.load import load_config
from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.datasets import build_dataset
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.shards.index import INDEX, read_index, scan_shards, write_index
from vitdense.data.shards.shard_files import ShardFolder, data_folder
from vitdense.data.shards.write import ShardMember, write_shards
from vitdense.data.string_array import texts
from vitdense.data.transforms.common import RandomFlip
from vitdense.data.unlabelled import ImageDataset
from vitdense.errors import ConfigError, DataError
from vitdense.loading import loaders

NAMES = sorted(f'{"ab"[number % 2]}/{number}.png' for number in range(6))
KINDS = {
    'classification': (ClassificationDataset, dict(folder='train')),
    'segmentation': (SegmentationDataset, dict(images='images/train', labels='masks/train', classes='classes.txt')),
    'detection': (CocoDetection, dict(annotations='train.json', images='train')),
}


def write_files(root: Path, kind: str) -> None:
    """Write a data set of six images."""
    random = np.random.default_rng(0)
    folder = root / ('images/train' if kind == 'segmentation' else 'train')
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8)).save(folder / name)
        if kind == 'segmentation':
            mask = root / 'masks' / 'train' / name
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 2, (12, 16), np.uint8)).save(mask)
    (root / 'classes.txt').write_text('x\ny\n') if kind == 'segmentation' else None
    if kind == 'detection':
        images = [dict(id=k + 1, file_name=name, width=16, height=12) for k, name in enumerate(NAMES)]
        boxes = [dict(id=k + 1, image_id=k + 1, category_id=1, bbox=[k, 1, 5, 6], area=30, iscrowd=0) for k in range(5)]
        content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='x')])
        (root / 'train.json').write_text(json.dumps(content))


def shards_of(root: Path, kind: str, *, megabytes: float = 1e-3) -> tuple[Any, dict[str, Any]]:
    """Write shards with the command, and return what builds the data set."""
    tool.main([str(root), str(root / 'out'), '--max-mb', str(megabytes)])
    suffix = {'segmentation': dict(labels='train', label_suffix='.seg.png', classes='classes.txt')}
    locations = {'classification': dict(folder='train'), 'detection': dict(annotations='train.json', images='train')}
    return KINDS[kind][0], locations.get(kind) or dict(images='train', **suffix[kind])


def batches(dataset: Any, workers: int, start: int = 0, count: int = 5) -> list[Any]:
    loader = loaders.train_loader(
        dict(batch_size=2, num_workers=workers), dataset, seed=3, rank=0, world_size=1, start=start, pin_memory=False
    )
    actual = [batch for batch, _ in zip(loader, range(count), strict=False)]
    loaders.close_loaders()
    return [[batch.imgs, *[leaf for leaf in tree_leaves(batch.targets) if isinstance(leaf, torch.Tensor)]]
            for batch in actual]  # fmt: skip


def assert_equal(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) == len(other) and all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize('kind', KINDS)
def test_batches_are_those_of_the_files(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(loaders, 'cpu_count', lambda: 4)
    write_files(tmp_path, kind)
    data, arguments = shards_of(tmp_path, kind)
    assert len(list((tmp_path / 'out' / 'train').glob('*.tar'))) > 2  # several shards
    options = dict(transforms=[RandomFlip()])
    sharded = data(**arguments, root=tmp_path / 'out', **options)
    expected = batches(data(**KINDS[kind][1], root=tmp_path, **options), 0)
    assert sharded.image_files()[1] == NAMES
    for workers in (0, 1, 4) if kind == 'segmentation' else (0,):
        assert_equal(batches(sharded, workers), expected)
    assert_equal(batches(sharded, 1, start=4, count=3), expected[2:])  # as a resumed run reads
    sharded.check()


def test_label_files_and_samples_have_the_names_of_webdataset(tmp_path):
    write_files(tmp_path, 'segmentation')
    shards_of(tmp_path, 'segmentation', megabytes=1)
    with tarfile.open(tmp_path / 'out/train/shard-000000.tar') as archive:
        names = archive.getnames()
    assert names[:4] == ['a/0.png', 'a/0.seg.png', 'a/2.png', 'a/2.seg.png'] and len(names) == 12
    (tmp_path / 'classes').mkdir()
    write_files(tmp_path / 'classes', 'classification')
    tool.main([str(tmp_path / 'classes'), str(tmp_path / 'more')])
    folder = ShardFolder(str(tmp_path / 'more/train'))
    assert [folder.read(f'{name[0]}/{name[2]}.cls') for name in ('a/0', 'b/1')] == [b'0', b'1']


def test_the_readers_of_webdataset_read_them(tmp_path):
    webdataset = pytest.importorskip('webdataset')
    write_files(tmp_path, 'classification')
    shards_of(tmp_path, 'classification', megabytes=1)
    samples = list(
        webdataset.WebDataset(str(tmp_path / 'out/train/shard-000000.tar'), shardshuffle=False).decode('rgb8')
    )
    assert [(sample['__key__'], sample['cls']) for sample in samples[:4]] == [
        ('a/0', 0),
        ('a/2', 0),
        ('a/4', 0),
        ('b/1', 1),
    ]
    data = ClassificationDataset('train', root=tmp_path / 'out')
    assert torch.equal(torch.from_numpy(samples[0]['png']).permute(2, 0, 1), data[0].img.as_subclass(torch.Tensor))


def test_the_same_samples_give_the_same_bytes(tmp_path):
    samples = [[ShardMember(f'{k}.png', b'x' * 700), ShardMember(f'{k}.cls', b'1')] for k in range(5)]
    for name in ('one', 'two'):
        index = write_shards(tmp_path / name, samples, max_bytes=6000)
        assert len(index.shards) == 3 and index.shard.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    for path in (tmp_path / 'one').iterdir():
        assert path.read_bytes() == (tmp_path / 'two' / path.name).read_bytes()
    with pytest.raises(ConfigError, match='OUT'):
        write_shards(tmp_path / 'one', samples)


def test_object_stores_are_read_by_ranges(tmp_path):
    fsspec = pytest.importorskip('fsspec')
    write_files(tmp_path, 'classification')
    data, arguments = shards_of(tmp_path, 'classification')
    store = fsspec.filesystem('memory')
    store.put(str(tmp_path / 'out/train'), '/bucket/train', recursive=True)
    remote = data('memory://bucket/train', root='/nowhere', name='train')
    local = data(**arguments, root=tmp_path / 'out')
    assert_equal(batches(remote, 1), batches(local, 0))
    assert isinstance(remote.folder, ShardFolder) and remote.folder.remote and len(remote) == 6
    with pytest.raises(DataError, match='cannot read the index'):
        data('memory://bucket/other')


def test_images_that_are_not_there_are_missing_or_unreadable(tmp_path):
    write_files(tmp_path, 'detection')
    data, arguments = shards_of(tmp_path, 'detection')
    content = json.loads((tmp_path / 'out/train.json').read_text())
    content['images'][2]['file_name'] = 'a/none.png'
    (tmp_path / 'out/train.json').write_text(json.dumps(content))
    sharded = data(**arguments, root=tmp_path / 'out')
    assert sharded.missing() == ['a/none.png']
    with pytest.raises(DataError, match='none.png: cannot be read'):
        sharded[2]
    content['images'][2]['file_name'] = '../train/a/0.png'
    (tmp_path / 'out/train.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match='leads out|cannot be used'):
        data(**arguments, root=tmp_path / 'out')[2]
    write_shards(tmp_path / 'bad', [[ShardMember('a/0.png', b'\x89PNG nothing')]])
    with pytest.raises(DataError, match='0.png'):
        ImageDataset('bad', root=tmp_path)[0]


def test_shards_of_others_get_an_index(tmp_path):
    data = io.BytesIO()
    Image.new('RGB', (3, 2)).save(data, 'PNG')
    with tarfile.open(tmp_path / 'x.tar', 'w') as archive:
        for name in ('b/1.png', './a/0.png'):
            header = tarfile.TarInfo(name)
            header.size = len(data.getvalue())
            archive.addfile(header, io.BytesIO(data.getvalue()))
    assert not isinstance(data_folder(tmp_path, ''), ShardFolder)
    tool.main(['--index', str(tmp_path)])
    dataset = ClassificationDataset('', root=tmp_path)
    assert [dataset[row].meta.image_id for row in (0, 1)] == ['a/0.png', 'b/1.png'] and dataset.missing() == []
    with tarfile.open(tmp_path / 'y.tar', 'w') as archive:
        archive.addfile(tarfile.TarInfo('a/0.png'), io.BytesIO())
    with pytest.raises(DataError, match='occurs twice'):
        scan_shards(tmp_path)
    (tmp_path / 'y.tar').write_bytes(b'no tar')
    with pytest.raises(DataError, match='is no shard'):
        scan_shards(tmp_path)
    with pytest.raises(DataError, match='no shards'):
        scan_shards(tmp_path / 'none')


def test_an_index_that_cannot_be_true_is_refused(tmp_path):
    index = write_shards(tmp_path, [[ShardMember('a.png', b'12345')], [ShardMember('b.png', b'678')]])
    good = (tmp_path / INDEX).read_bytes()
    assert ShardFolder(str(tmp_path)).read('b.png') == b'678'
    write_index(tmp_path, index._replace(names=texts(['a..b', 'z'])))
    assert ShardFolder(str(tmp_path)).read('z') == b'678'
    write_index(tmp_path, index)
    wrong = [
        index._replace(offset=index.offset * 10**6),
        index._replace(offset=-index.offset),
        index._replace(size=np.full_like(index.size, 2**62)),
        index._replace(shard=index.shard + 1),
        index._replace(shard=index.shard[:1]),
        index._replace(shards=['../shard-000000.tar']),
        index._replace(lengths=[-5]),
        index._replace(names=index.names._replace(ends=index.names.ends[::-1].copy())),
        index._replace(shards=[], lengths=[]),
        *(index._replace(names=texts([name, 'z'])) for name in ('../a', 'a/../b', '/etc/passwd', 'a\\b', 'a\0b', '')),
    ]
    for each in wrong:
        write_index(tmp_path, each)
        with pytest.raises(DataError, match='cannot be read'):
            ShardFolder(str(tmp_path))
    for data in (b'', b'x' * 100, good[:-3], good.replace(b'format\\": 1', b'format\\": 2'), b'\xff' * 16):
        with pytest.raises(DataError, match='cannot be read'):
            read_index(data, 'test')
    (tmp_path / INDEX).write_bytes(good)
    with open(tmp_path / 'shard-000000.tar', 'ab') as file:
        file.write(b'more')
    with pytest.raises(DataError, match='is not the shard of the index'):
        ShardFolder(str(tmp_path))


def test_the_config_of_the_docs_reads_shards(tmp_path):
    text = (Path(__file__).resolve().parents[3] / 'docs/shards.md').read_text()
    (tmp_path / 'roads.py').write_text(text.split('```python\n')[1].split('```')[0])
    write_files(tmp_path, 'segmentation')
    for folder in ('images', 'masks'):
        (tmp_path / folder / 'val').symlink_to(tmp_path / folder / 'train')
    tool.main([str(tmp_path), str(tmp_path / 'out')])
    cfg = load_config(tmp_path / 'roads.py', [f'data_root={tmp_path}/out'])
    for section in (cfg.train_dataloader, cfg.test_dataloader):
        dataset = build_dataset(section.dataset, root=cfg.data_root)
        assert len(dataset) == 6 and dataset.read(0).target.semantic.shape == (12, 16)
