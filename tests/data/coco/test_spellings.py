"""Numbers of COCO files in other spellings, and what is no number: in data sets, checks, the cache and evaluation."""

import contextlib
import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitdense.data.coco import cache as coco_cache
from vitdense.data.coco.cache import open_coco
from vitdense.data.coco.dataset import CocoDetection
from vitdense.dataset_checks.check_coco import check_coco
from vitdense.errors import DataError
from vitdense.scoring.saved_predictions import evaluate_coco

RING = [[10, 10, 40, 10, 40, 30, 10, 30]]


@pytest.fixture
def log_text(caplog, monkeypatch):
    monkeypatch.setattr('vitdense.scoring.saved_predictions.start_logging', lambda folder: None)
    monkeypatch.setattr(logging.getLogger('vitdense'), 'propagate', True)
    caplog.set_level(logging.INFO, 'vitdense')
    return caplog


@pytest.fixture
def files(tmp_path):
    """Three images of 80 x 60 with two objects each, and perfect predictions; `change` mends a copy."""

    class Files:
        root, path, results = tmp_path, tmp_path / 'a.json', tmp_path / 'results.json'
        content = dict(
            images=[dict(id=k, file_name=f'{k}.png', width=80, height=60) for k in (1, 2, 3)],
            categories=[dict(id=4, name='cat'), dict(id=9, name='dog')],
            annotations=[
                dict(id=k, image_id=1 + k % 3, category_id=(4, 9)[k % 2], bbox=[10, 10, 30, 20], area=600, iscrowd=0)
                | dict(segmentation=RING)
                for k in range(1, 7)
            ],
        )

        def __init__(self):
            (tmp_path / 'images').mkdir()
            for number in (1, 2, 3):
                Image.new('RGB', (80, 60)).save(tmp_path / 'images' / f'{number}.png')
            rows = [{key: record[key] for key in ('image_id', 'category_id', 'bbox')} for record in self.annotations]
            self.rows = [row | dict(score=0.9) for row in json.loads(json.dumps(rows))]
            self.write()

        @property
        def annotations(self):
            return self.content['annotations']

        def write(self, rows=None, **changes):
            self.path.write_text(json.dumps(self.content | changes))
            self.results.write_text(json.dumps(self.rows if rows is None else rows))

        def all(self, table='annotations', **changes):
            """Write the file with every record of a table changed by functions of its values."""
            changed = [
                record | {key: change(record[key]) for key, change in changes.items()} for record in self.content[table]
            ]
            self.write(**{table: changed})

        def open(self, **options):
            return CocoDetection('a.json', 'images', root=tmp_path, **options)

        def score(self, **options):
            return evaluate_coco(self.path, self.results, **options)

        def kinds(self):
            report = check_coco(self.path, tmp_path / 'images')
            return {(finding.kind, finding.where) for finding in report.findings}

    Files.content = json.loads(json.dumps(Files.content))
    return Files()


def by_pycocotools(targets, results):
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(targets))
        evaluation = COCOeval(known, known.loadRes(str(results)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else value for value in evaluation.stats.tolist()]


SPELLINGS = {
    'floats': (float, True),  # as pandas writes a column with a gap
    'words': (str, False),
    'words of floats': (lambda value: str(float(value)), False),
}


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize(
    ('table', 'key'),
    [
        ('annotations', 'image_id'),
        ('annotations', 'category_id'),
        ('annotations', 'id'),
        ('annotations', 'iscrowd'),
        ('images', 'width'),
        ('images', 'height'),
        ('images', 'id'),
        ('categories', 'id'),
    ],
)
def test_a_number_in_another_spelling_is_that_number(files, table, key, spelling):
    expected = [files.open(masks=True)[row].target for row in range(3)]
    spell, in_pycocotools = SPELLINGS[spelling]
    files.all(table, **{key: spell})
    assert files.kinds() == set()
    for evaluation in (False, True):
        data = files.open(masks=True, evaluation=evaluation)
        for row, target in enumerate(expected):
            ours = data[row].target
            assert all(torch.equal(one, other) for one, other in zip(ours, target, strict=True) if one is not None)
    scores = files.score()
    assert scores['det/AP'] == pytest.approx(1) and scores == files.score(iou_type='bbox', engine='pycocotools')
    assert files.score(iou_type='segm')['det/segm/AP'] == pytest.approx(1)
    if in_pycocotools:
        assert list(scores.values()) == by_pycocotools(files.path, files.results)


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('key', ['image_id', 'category_id'])
def test_results_are_read_by_the_same_rules(files, key, spelling):
    files.write([row | {key: SPELLINGS[spelling][0](row[key])} for row in files.rows])
    assert files.score()['det/AP'] == pytest.approx(1)


def test_every_second_id_as_float_loses_no_object(files):
    for record in files.annotations[::2]:
        record['image_id'] = float(record['image_id'])
    files.write()
    assert files.score()['det/AP'] == pytest.approx(1) and len(files.open()[0].target.labels) == 2


@pytest.mark.parametrize('long', [2**63, 2**70, 10**400, -(2**80)])
@pytest.mark.parametrize('cached', [False, True])
def test_ids_beyond_64_bits_are_shown_as_they_are(files, long, cached, monkeypatch):
    monkeypatch.setattr(coco_cache, 'SETTLED', -(10**10))
    for record in files.annotations:
        record['id'] += long
    files.annotations[2]['bbox'] = [90, 5, 9, 9]
    files.write()
    if cached:
        for _ in range(2):
            arrays, context = open_coco(files.path, cache=files.root / 'cache', least=0)
        assert sorted(arrays.name(row) for row in range(6)) == sorted(record['id'] for record in files.annotations)
        assert context.faults[0][:2] == ['empty', files.annotations[2]['id']]
    assert ('empty', str(files.annotations[2]['id'])) in files.kinds()
    assert sorted(files.open(evaluation=True)[0].target.annotation_ids.tolist()) == [3, 6]  # the place in the file
    files.annotations[1]['id'] = files.annotations[0]['id']
    files.write()
    assert ('duplicate_id', str(files.annotations[0]['id'])) in files.kinds()


BAD = {
    'id': (dict(id=1.5), 'it has no whole number as id'),
    'id, true': (dict(id=True), 'it has no whole number as id'),
    'category': (dict(category_id=4.5), 'no category has the id 4.5'),
    'category, true': (dict(category_id=True), 'no category has the id True'),
    'crowd': (dict(iscrowd='maybe'), "iscrowd 'maybe' is not 0 or 1"),
    'crowd, two': (dict(iscrowd=2), 'iscrowd 2 is not 0 or 1'),
    'crowd, empty': (dict(iscrowd=''), "iscrowd '' is not 0 or 1"),
    'box': (dict(bbox=[10**400, 1, 5, 5]), 'a number is too large'),
    'box, word': (dict(bbox=['10', 1, 5, 5]), "'10' is not a number"),
    'box, true': (dict(bbox=[True, 1, 5, 5]), 'True is not a number'),
}


@pytest.mark.parametrize('name', BAD)
def test_what_is_no_number_is_an_error_with_the_id_everywhere(files, name):
    kind = name.split(',')[0]
    change, reason = BAD[name]
    files.annotations[1] |= change
    files.write()
    for look in (files.open, lambda: files.open(evaluation=True, masks=True), files.score):
        with pytest.raises(DataError, match='1 annotations or images cannot be used') as caught:
            look()
        assert reason in caught.value.why and kind in caught.value.why
    assert kind in {actual for actual, _ in files.kinds()}


@pytest.mark.parametrize('area', ['600', 10**400, float('nan'), -1, True])
def test_an_invalid_area_is_logged_and_replaced_by_that_of_the_box(files, log_text, area):
    files.annotations[1]['area'] = area
    files.write()
    assert ('area', '2') in files.kinds() and files.score()['det/AP'] == pytest.approx(1)
    assert 'whose area is that of the box 1' in log_text.text
    assert files.open(evaluation=True)[2].target.area.tolist() == [600, 600]


def test_numbers_of_three_hundred_digits_do_not_overflow(files):
    files.annotations[1]['bbox'] = [1e300, 1e300, 1e300, 1e300]
    files.annotations[2]['area'] = 10**300
    files.write()
    with np.errstate(all='raise'):
        assert files.kinds() == {('empty', '2')}
        assert len(files.open()[2].target.labels) == 1


def test_an_annotation_whose_image_is_not_there_is_counted(files, log_text):
    files.annotations[1]['image_id'] = 1.5
    files.write()
    assert ('missing_image', '2') in files.kinds()
    files.open()
    assert 'a.json: boxes without image 1' in log_text.text
    log_text.clear()
    files.score()
    assert 'a.json: boxes without image 1' in log_text.text


def test_duplicate_ids_are_logged_in_evaluation(files, log_text):
    files.annotations[1]['id'] = 1
    files.write()
    assert files.score()['det/AP'] == pytest.approx(1)  # pycocotools has one object twice and loses the other
    assert 'objects of one id all count; pycocotools' in log_text.text


@pytest.mark.parametrize(
    'size', [dict(width='wide'), dict(width=80.5), dict(height=-60), dict(width=None), dict(width=True)]
)
def test_a_size_that_is_none_is_a_finding(files, size):
    files.content['images'][0] |= size
    files.write()
    assert files.kinds() == {('image_size', '1'), ('size', '1')}
    assert len(files.open(masks=True)[0].target.masks) == 2


def test_masks_without_sizes(files):
    from pycocotools import mask as coco

    runs = coco.merge(coco.frPyObjects(RING, 60, 80))
    files.annotations[0]['segmentation'] = dict(size=[60, 80], counts=runs['counts'].decode())
    files.all('images')
    images = [
        {key: value for key, value in image.items() if key not in ('width', 'height')}
        for image in files.content['images']
    ]
    files.write(images=images)
    assert files.open(masks=True)[1].target.masks.sum((1, 2)).tolist() == [600, 600]
    assert files.score()['det/AP'] == pytest.approx(1)
    with pytest.raises(DataError, match='does not give the sizes of 3 of its 3 images') as caught:
        files.score(iou_type='segm')
    assert 'width and height' in caught.value.fix
    files.write(
        [row | dict(bbox=[], segmentation=files.annotations[0]['segmentation']) for row in files.rows], images=images
    )
    assert files.score()['det/AP'] == pytest.approx(1)  # boxes of run lengths, which say their size
