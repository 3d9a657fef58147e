"""Before the first step: how much data there is, which files are missing, and limits that it exceeds."""

import json
import logging
from types import SimpleNamespace

import pytest
from PIL import Image

from vitdense.data.classification import ClassificationDataset
from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.mixture import Mixture
from vitdense.errors import ConfigError, DataError
from vitdense.heads.detr.detr import DetrHead
from vitdense.loading.data_checks import compare_ranges, log_data, log_metric_limits, log_query_limits, refuse_missing
from vitdense.loading.loaders import train_loader
from vitdense.metrics.average_precision import CocoAP
from vitdense.tasks.detection import DetectionTask


@pytest.fixture
def message(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('vitdense'), 'propagate', True)
    caplog.set_level(logging.INFO, 'vitdense')
    return caplog


@pytest.fixture
def make(tmp_path):
    """A data set of images with that many objects each; the files of `missing` are not there."""

    def make(counts=(1, 2), missing=(), name='yard', **options):
        (tmp_path / 'photos').mkdir(exist_ok=True)
        images, objects = [], []
        for number, count in enumerate(counts):
            images.append(dict(id=number, file_name=f'{number}.png', width=80, height=60))
            for k in range(count):
                objects.append(dict(id=len(objects), image_id=number, category_id=1 + k % 2, bbox=[k % 50, 3, 9, 9]))
            if number not in missing:
                Image.new('RGB', (80, 60)).save(tmp_path / 'photos' / f'{number}.png')
        categories = [dict(id=k, name=f'class {k}') for k in (1, 2, 3)]
        content = dict(images=images, annotations=objects, categories=categories)
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
        return CocoDetection(f'{name}.json', 'photos', root=tmp_path, name=name, **options)

    return make


def test_how_much_there_is(make, message):
    whole = make((1, 2, 0))
    log_data({'training': whole, 'validation': make((4,), name='other', evaluation=True, classes=['class 2'])})
    assert 'training, yard: 3 images, 3 objects of 2 classes; no object of class 3' in message.text
    assert 'validation, other: 1 images, 2 objects of 1 classes\n' in message.text
    log_data({'training': Mixture({'a': whole, 'b': make(name='b')}), 'test': range(7)})
    assert 'training, b: 2 images, 3 objects' in message.text


def test_missing_images_are_an_error_before_the_first_step(make, message):
    data = make([1] * 12, missing=(2, 7, 9))
    assert data.missing() == ['2.png', '7.png', '9.png']
    with pytest.raises(DataError, match='3 of 12 images are missing, such as 2.png, 7.png, 9.png') as caught:
        refuse_missing(data, name='training', max_bad_fraction=0.01)
    assert '+train_dataloader.max_bad_fraction=0.25' in caught.value.fix and 'check-data' in caught.value.fix
    refuse_missing(data, name='training', max_bad_fraction=0.25)
    assert 'training: 3 of 12 images are missing' in message.text
    with pytest.raises(DataError, match='validation: 3 of 12'):
        refuse_missing(data, name='validation')
    with pytest.raises(DataError, match='4 of 16 images are missing'):
        refuse_missing(
            Mixture({'a': data, 'b': make([1] * 4, missing=(2,), name='b')}), name='training', max_bad_fraction=0
        )
    refuse_missing(range(3), name='training')
    assert make([1] * 12, missing=(2, 7, 9), num_images=2).missing() == []


def test_one_missing_image_is_said_and_replaced(make, message):
    refuse_missing(make([1] * 12, missing=(2,)), name='training', max_bad_fraction=0.01)
    assert 'training: 1 of 12 images are missing, such as 2.png; others take their place' in message.text


def test_where_missing_images_seem_to_be_is_said(make, tmp_path):
    data = make()
    (tmp_path / 'photos').rename(tmp_path / 'Photos')
    (tmp_path / 'photos/photos').mkdir(parents=True)
    (tmp_path / 'Photos/0.png').rename(tmp_path / 'photos/photos/0.png')
    with pytest.raises(DataError) as caught:
        refuse_missing(data, name='training', max_bad_fraction=0.01)
    assert f'give the folder {tmp_path / "photos/photos"}' in caught.value.why


def test_the_share_of_bad_images_comes_from_the_config(make):
    location = dict(seed=0, rank=0, world_size=1, start=0, pin_memory=False)
    loader = train_loader(dict(num_workers=0, max_bad_fraction=0.3), make(), **location)
    assert loader.dataset.dataset.max_bad_fraction == 0.3
    assert train_loader(dict(num_workers=0), make(), **location).dataset.dataset.max_bad_fraction == 0.01
    with pytest.raises(ConfigError, match='max_bad_fraction'):
        train_loader(dict(num_workers=0, max_bad_fraction=3), make(), **location)


def model(num_queries=100, **options):
    head = DetrHead((32,), (16,), 2, channels=32, num_heads=2, num_queries=num_queries)
    network = SimpleNamespace(adapters={}, heads={'det': head})
    return SimpleNamespace(network=network, tasks={'det': DetectionTask(**options)})


def test_more_objects_than_queries_and_predictions_are_said(make, message):
    log_query_limits(model(), make((150, 20)), name='training')
    start = 'training: 1 of 2 images have more than 100 objects, up to 150, and '
    assert f"{start}the head 'det' has 100 queries (num_queries)" in message.text
    assert f'{start}100 predictions are read from an image (top_k of model.tasks.det)' in message.text
    message.clear()
    log_query_limits(model(num_queries=200, top_k=200), make((150, 20)), name='training')
    log_query_limits(model(datasets=['other']), make((150, 20)), name='training')
    log_query_limits(model(), make((100,)), name='training')
    assert message.text == ''
    log_query_limits(model(), Mixture({'few': make(), 'many': make((130,), name='many')}), name='training')
    assert 'up to 130' in message.text


def test_more_objects_than_the_metric_counts_are_said_at_the_start(make, message):
    data = make((150, 20), evaluation=True)  # of two classes, 75 each
    for metric, count in ((CocoAP(), 0), (CocoAP(max_detections=50), 1), (SimpleNamespace(), 1)):
        log_metric_limits({'': data}, {'': [metric]}, name='validation')
        assert message.text.count('validation: 1 of 2 images has more than 50 objects of one class') == count
    assert data.object_counts().tolist() == [150, 20] and data.object_counts(of_one_class=True).tolist() == [75, 10]


def test_missing_files_of_a_list_of_classes_are_known(tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (8, 6)).save(tmp_path / name / '1.png')
    (tmp_path / 'list.txt').write_text(''.join(f'{name}/{k}.png\n' for name in ('cat', 'dog') for k in (1, 2)))
    data = ClassificationDataset('', root=tmp_path, split='list.txt')
    assert data.missing() == ['cat/2.png', 'dog/2.png'] and ClassificationDataset('', root=tmp_path).missing() == []
    with pytest.raises(DataError, match='2 of 4 images are missing'):
        refuse_missing(data, name='training', max_bad_fraction=0.01)


def test_other_ranges_than_in_training_are_said(make, message):
    narrow, plain = make(value_range=(0, 4095)), make()
    compare_ranges(narrow, {'validation': narrow, 'validation a': make(value_range=[0, 4095])})
    compare_ranges(Mixture(dict(a=narrow, b=plain)), {'validation': plain})
    compare_ranges(SimpleNamespace(), {'validation': plain})  # a data set without a range
    assert 'value_range' not in message.text
    compare_ranges(narrow, {'validation': plain})
    assert 'validation: value_range is None, and (0.0, 4095.0) in training' in message.text
