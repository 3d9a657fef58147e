"""Every test image has outputs of its own, under its path below the data set."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.commands.output_paths import OutputPaths, distinct_stems
from vitdense.commands.test import PredictionHook
from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.mixture import Mixture
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.unlabelled import ImageDataset
from vitdense.errors import ConfigError, DiskError
from vitdense.loading.evaluation_sets import LoaderSet
from vitdense.metrics.confusion import save_confusions
from vitdense.metrics.miou import MeanIoU
from vitdense.scoring.saved_predictions import evaluate_semantic
from vitdense.types import Batch, Meta, SemanticMap, Target


def loader_of(dataset):
    """A loader as the engine wraps a data set, without the workers."""
    return SimpleNamespace(dataset=SimpleNamespace(dataset=SimpleNamespace(dataset=dataset)))


def write_images(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 2, (6, 8), dtype=np.uint8)).save(root / name)


def test_folders_that_cannot_be_made_are_noticed_before_the_test(tmp_path):
    (tmp_path / 'file').write_text('')
    for folders in ((tmp_path / 'file' / 'out', None), (None, tmp_path / 'file' / 'shown')):
        with pytest.raises(DiskError, match='cannot make the folder'):
            PredictionHook(*folders)


def write_predictions(out: Path, loader, samples, *, show: bool = False) -> None:
    """Do what the hook of one process does with its share of the images; predictions are the label maps."""
    hook = PredictionHook(out, out / 'shown' if show else None)
    runner = SimpleNamespace(test_dataloader=loader, metainfo={}, network_model=SimpleNamespace(tasks={}))
    for sample in samples:
        batch = Batch(sample.img[None], [sample.target], [sample.meta])
        hook.after_test_iter(runner, 0, batch, [{'sem': SemanticMap(sample.target.semantic)}])


def actual(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def segmentation(root: Path, **options) -> SegmentationDataset:
    return SegmentationDataset('images', 'masks', root=root, classes=['a', 'b'], evaluation=True, **options)


@pytest.mark.parametrize(
    'names', [['aachen/0.png', 'aachen/1.png', 'bochum/0.png', 'bochum/1.png'], ['f1/a.png', 'f1/a_2.png', 'f2/a.png']]
)
@pytest.mark.parametrize('ranks', [1, 2, 3])
def test_label_maps_keep_their_folders_for_any_number_of_processes(tmp_path, names, ranks):
    write_images(tmp_path / 'images', *names)
    write_images(tmp_path / 'masks', *names)
    dataset = segmentation(tmp_path)
    for rank in range(ranks):
        samples = [dataset[index] for index in range(rank, len(names), ranks)]
        write_predictions(tmp_path / 'out', loader_of(dataset), samples, show=True)
    assert actual(tmp_path / 'out' / 'sem') == names
    assert actual(tmp_path / 'out' / 'shown') == [name.replace('.png', '.jpg') for name in names]
    scores = evaluate_semantic(tmp_path / 'masks', tmp_path / 'out' / 'sem', num_classes=2)
    assert scores['sem/mIoU'] == 1


def test_the_endings_of_cityscapes_are_paired_again(tmp_path):
    cities = ['aachen/aachen_0_19', 'aachen/aachen_1_19', 'ulm/ulm_0_19']
    write_images(tmp_path / 'images', *(f'{name}_leftImg8bit.png' for name in cities))
    write_images(tmp_path / 'masks', *(f'{name}_gtFine_labelTrainIds.png' for name in cities))
    dataset = segmentation(tmp_path, image_suffix='_leftImg8bit.png', label_suffix='_gtFine_labelTrainIds.png')
    write_predictions(tmp_path / 'out', loader_of(dataset), [dataset[index] for index in range(3)])
    assert evaluate_semantic(tmp_path / 'masks', tmp_path / 'out/sem', num_classes=2)['sem/mIoU'] == 1


def test_several_sets_and_mixtures_have_folders(tmp_path):
    for name in ('one', 'two'):
        write_images(tmp_path / name / 'images', 'a.png')
        write_images(tmp_path / name / 'masks', 'a.png')
    parts = {name: segmentation(tmp_path / name, name=name) for name in ('one', 'two')}
    loaders = LoaderSet({name: loader_of(part) for name, part in parts.items()})
    for name, part in parts.items():
        loaders.current = name
        write_predictions(tmp_path / 'sets', loaders, [part[0]], show=True)
    assert actual(tmp_path / 'sets') == ['one/sem/a.png', 'shown/one/a.jpg', 'shown/two/a.jpg', 'two/sem/a.png']
    mixture = Mixture(parts)
    write_predictions(tmp_path / 'mixed', loader_of(mixture), [mixture[0], mixture[1]])
    assert actual(tmp_path / 'mixed') == ['one/sem/a.png', 'two/sem/a.png']


def test_suffixes_and_folders_distinguish_images():
    assert distinct_stems(['a.jpg', 'b.jpg']) == ['a', 'b']
    assert distinct_stems(['a.jpg', 'a.png', 'a_png.jpg']) == ['a_jpg', 'a_png_2', 'a_png']
    assert distinct_stems(['a.b.jpg', 'A.b.jpg', 'x/a.b.jpg']) == ['a.b', 'A.b', 'x/a.b']
    assert distinct_stems(['a.bmp', 'a.jpg/b.bmp']) == ['a_bmp', 'a.jpg/b']  # a.jpg cannot be a file and a folder
    many = [
        f'{folder}x{number}.{suffix}' for folder in ('', 'd/') for number in '12' for suffix in ('png', 'jpg', 'PNG')
    ]
    assert len(set(distinct_stems(many))) == len(many)


def test_images_of_coco_keep_their_folders_and_repeated_ones_their_ids(tmp_path):
    write_images(tmp_path / 'images', 'p/a.png', 'q/a.png')
    listed = [dict(id=3, file_name='p/a.png'), dict(id=5, file_name='q/a.png'), dict(id=8, file_name='q/a.png')]
    content = dict(
        images=[each | dict(width=8, height=6) for each in listed],
        annotations=[dict(id=1, image_id=3, category_id=1, bbox=[1, 1, 3, 3], area=9, iscrowd=0)],
        categories=[dict(id=1, name='x')],
    )
    (tmp_path / 'a.json').write_text(json.dumps(content))
    dataset = CocoDetection('a.json', 'images', root=tmp_path, evaluation=True, cache=False)
    paths = OutputPaths(loader_of(dataset))
    assert [paths.path_of(dataset[index].meta).name for index in range(3)] == ['p/a', 'q/a_5', 'q/a_8']


@pytest.mark.parametrize('kind', [ClassificationDataset, ImageDataset])
def test_folders_of_images(tmp_path, kind):
    write_images(tmp_path / 'in', 'cat/1.png', 'dog/1.png', 'dog/1.jpg')
    dataset = kind('in', root=tmp_path)
    paths = OutputPaths(loader_of(dataset))
    names = [paths.path_of(dataset[index].meta).name for index in range(3)]
    assert names == ['cat/1', 'dog/1_jpg', 'dog/1_png']


def test_images_of_a_data_set_without_a_list_are_named_by_ids():
    paths = OutputPaths(loader_of(SimpleNamespace()))
    metas = [Meta(1, '/x/a.png'), Meta(2, '/y/a.png'), Meta('b/c'), Meta('../b/c'), Meta('/b/c'), Meta('b?c')]
    names = [paths.path_of(meta).name for meta in metas]
    assert names[:3] == ['a_1', 'a_2', 'b/c'] and len(set(names)) == len(metas)
    assert all(not name.startswith('/') and '..' not in name for name in names)


def test_files_of_the_data_set_are_never_overwritten(tmp_path, caplog):
    write_images(tmp_path / 'images', 'f/a.jpg')
    write_images(tmp_path / 'sem', 'f/a.png')
    dataset = SegmentationDataset('images', 'sem', root=tmp_path, classes=['a', 'b'], evaluation=True)
    before = (tmp_path / 'sem/f/a.png').read_bytes()
    OutputPaths(loader_of(dataset)).writable(tmp_path / 'images/shown/a.jpg')
    assert 'lies in a folder of images' in caplog.text
    (tmp_path / 'link').symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / 'link'):
        with pytest.raises(ConfigError, match='is not overwritten'):
            write_predictions(out, loader_of(dataset), [dataset[0]])
    paths = OutputPaths(loader_of(dataset))
    with pytest.raises(ConfigError, match='is not overwritten'):
        paths.writable(tmp_path / 'images/f/a.jpg')
    assert (tmp_path / 'sem/f/a.png').read_bytes() == before


def test_the_matrices_of_several_sets_have_files_of_their_own(tmp_path):
    metrics = [MeanIoU(classes=['a', 'b']), MeanIoU(classes=['a', 'b'])]
    labels = torch.tensor([[0, 1]], dtype=torch.uint8)
    for metric in metrics:
        metric.process(Batch(labels, [Target(semantic=labels)], [Meta('a')]), [{metric.head: SemanticMap(labels)}])
        metric.evaluate(1)
    save_confusions(metrics[:1], tmp_path / 'one')
    assert sorted(path.name for path in (tmp_path / 'one').iterdir())[0] == 'confusion.csv'
    metrics[0].prefix, metrics[1].prefix = 'near/sem', 'far/sem'
    save_confusions(metrics, tmp_path / 'two')
    names = {path.name for path in (tmp_path / 'two').glob('*.png')}
    assert names == {'confusion_near_sem.png', 'confusion_far_sem.png'}
