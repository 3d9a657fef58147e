"""Rows of results files that cannot be scored: which row, why, and what to write instead."""

import contextlib
import io
import json
import logging

import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitdense.errors import DataError, NumericsError
from vitdense.ops.masks import runs_of_masks
from vitdense.scoring.saved_predictions import evaluate_coco

RING = [[10, 10, 40, 10, 40, 30, 10, 30]]
BOX = [10, 10, 30, 20]


@pytest.fixture
def message(caplog, monkeypatch):
    monkeypatch.setattr('vitdense.scoring.saved_predictions.start_logging', lambda folder: None)
    monkeypatch.setattr(logging.getLogger('vitdense'), 'propagate', True)
    caplog.set_level(logging.INFO, 'vitdense')
    return caplog


@pytest.fixture
def score(tmp_path):
    """Score rows against an object in each of two images."""

    def score(*rows, annotations=None, categories=((5, 'cat'), (8, 'dog')), **options):
        objects = [
            dict(id=k, image_id=k, category_id=5, bbox=BOX, area=600, iscrowd=0, segmentation=RING) for k in (1, 2)
        ]
        content = dict(
            images=[dict(id=k, file_name=f'{k}.png', width=80, height=60) for k in (1, 2)],
            categories=[dict(id=number, name=name) for number, name in categories],
            annotations=objects if annotations is None else annotations,
        )
        (tmp_path / 'annotations.json').write_text(json.dumps(content))
        (tmp_path / 'found.json').write_text(json.dumps(list(rows)))
        return evaluate_coco(tmp_path / 'annotations.json', tmp_path / 'found.json', **options)

    return score


def row(image=1, **more):
    return dict(image_id=image, category_id=5, bbox=BOX, score=0.5) | more


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


BAD_FIRST = {
    'empty': (row(bbox=[]), 'neither bbox nor segmentation', 'bbox as [x, y, width, height]'),
    'null': (row(bbox=None), 'neither bbox nor segmentation', 'bbox as [x, y, width, height]'),
    'called box': (without(row(), 'bbox') | dict(box=BOX), "is it 'box'", 'bbox as'),
    'keypoints': (without(row(), 'bbox') | dict(keypoints=[1, 2, 2]), 'neither bbox nor segmentation', 'bbox as'),
}


@pytest.mark.parametrize('name', BAD_FIRST)
@pytest.mark.parametrize('location', [0, 1])
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_a_row_without_box_and_mask_is_named_wherever_it_stands(score, name, location, iou_type):
    bad, why, fix = BAD_FIRST[name]
    rows = [row(2)]
    rows.insert(location, bad)
    with pytest.raises(DataError, match=f'prediction {location + 1} cannot be scored') as caught:
        score(*rows, iou_type=iou_type)
    assert why in caught.value.why and fix in caught.value.fix


BAD = {
    'no score': (without(row(), 'score'), 'it has no score', 'write score into every row'),
    'a misspelt key': (without(row(), 'category_id') | dict(category=5), "is it 'category'", 'write category_id'),
    'a word as score': (row(score='0.5'), "its score is not a number: '0.5'", 'write a number as score'),
    'true as score': (row(score=True), 'its score is not a number', 'write a number as score'),
    'a huge score': (row(score=10**400), 'too large', 'write a number as score'),
    'a huge box': (row(bbox=[10**400, 1, 2, 3]), 'too large', 'write bbox as'),
    'three numbers': (row(bbox=[1, 2, 3]), 'four numbers', 'write bbox as'),
    'a word as box': (row(bbox='1 2 3 4'), 'four numbers', 'write bbox as'),
    'true as image': (
        row(image=True),
        'no image of the annotation file has the id True',
        'annotation file of the images',
    ),
    'half an image': (row(image=1.5), 'the id 1.5', 'annotation file of the images'),
    'another category': (row(category_id=6), 'no category 6; its ids are 5, 8', '--ignore-unknown'),
    'no box behind one': (
        without(row(), 'bbox') | dict(segmentation=RING),
        'the first row has one',
        'in all rows or in none',
    ),
}


@pytest.mark.parametrize('name', BAD)
def test_the_cure_fits_the_cause(score, name):
    bad, why, fix = BAD[name]
    with pytest.raises(DataError, match='prediction 2 cannot be scored') as caught:
        score(row(), bad)
    assert why in caught.value.why and fix in caught.value.fix
    assert 'annotation file' in caught.value.fix or 'image' not in caught.value.fix


def test_a_bad_mask_has_a_cure_of_its_own(score):
    masks = [row(bbox=[], segmentation=RING), row(bbox=[], segmentation=dict(size=[9, 9], counts='1'))]
    with pytest.raises(DataError, match='prediction 2') as caught:
        score(*masks, iou_type='segm')
    assert 'run lengths of size [9, 9]' in caught.value.why and 'pycocotools.mask.encode' in caught.value.fix
    with pytest.raises(DataError, match='prediction 2') as caught:
        score(masks[0], without(row(), 'bbox') | dict(segmentation=None), iou_type='segm')
    assert 'neither bbox nor segmentation' in caught.value.why


def test_unknown_categories_are_left_out_on_request(score, message):
    rows = [row(), row(category_id=6, score=0.9), row(2), row(2, category_id='x')]
    assert score(*rows, ignore_unknown=True) == score(row(), row(2))
    assert 'found.json: 2 predictions of categories that the annotation file does not have are left out' in message.text
    with pytest.raises(DataError) as caught:
        score(row(category_id=0), row(2, category_id=1))
    assert 'class numbers from 0' in caught.value.fix


def test_boxes_in_another_layout_are_hinted_at(score, message):
    corners = [40, 30, 70, 50]
    objects = [dict(id=k, image_id=k, category_id=5, bbox=[40, 30, 30, 20], area=600, iscrowd=0) for k in (1, 2)]
    assert score(row(bbox=corners), row(2, bbox=corners), annotations=objects)['det/AP'] == 0
    assert '100 % of boxes leave the image if read as x, y, width, height; they fit as x, y, x2, y2' in message.text
    message.clear()
    score(row(bbox=[0.1, 0.2, 0.4, 0.3]))
    assert 'are they fractions of the image' in message.text
    message.clear()
    score(row(), row(2))
    assert 'boxes' not in message.text


def test_files_that_are_mistaken_for_each_other(score, tmp_path):
    score(row())
    with pytest.raises(DataError, match='no COCO results file') as caught:
        evaluate_coco(tmp_path / 'annotations.json', tmp_path / 'annotations.json')
    assert 'it is an annotation file' in caught.value.why and 'results second' in caught.value.fix
    with pytest.raises(NumericsError, match='1 non-finite boxes'):
        score(row(bbox=[float('nan'), 1, 2, 3]))


@pytest.mark.parametrize('count', [0, 300, 3000])
def test_any_number_of_masks_scores_as_in_pycocotools(count, score, tmp_path, monkeypatch):
    """More than 255 masks: pycocotools' own areas need NumPy 1, so that its reading is given masks one at a time."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 60, 80, generator=generator) < torch.rand(20, 1, 1, generator=generator)
    runs = [dict(run, counts=run['counts'].decode()) for run in runs_of_masks(masks)]
    rows = [
        dict(image_id=1 + k % 2, category_id=(5, 8)[k % 3 == 0], score=(k * 7 % 97) / 97, segmentation=runs[k % 20])
        for k in range(count)
    ]
    rows.insert(0, dict(image_id=1, category_id=5, score=0.01, segmentation=RING))
    objects = [
        dict(
            id=k + 1,
            image_id=1 + k % 2,
            category_id=5,
            bbox=BOX,
            area=float(masks[k].sum()),
            iscrowd=0,
            segmentation=runs[k],
        )
        for k in range(10)
    ]
    scores = score(*rows, annotations=objects, iou_type='segm')
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(tmp_path / 'annotations.json'))
        for record in rows[:1]:
            record['segmentation'] = rle.merge(rle.frPyObjects(RING, 60, 80))
        evaluation = COCOeval(known, known.loadRes(rows), 'segm')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(scores.values()) == [None if value == -1 else value for value in evaluation.stats.tolist()]


def test_more_objects_than_the_limit_are_logged_beside_the_score(score, message):
    boxes = [[(k % 15) * 5, (k // 15) * 5, 4, 4] for k in range(150)]
    objects = [dict(id=k, image_id=1, category_id=5, bbox=box, area=16, iscrowd=0) for k, box in enumerate(boxes, 1)]
    rows = [row(bbox=box, score=1 - k / 1000) for k, box in enumerate(boxes)]
    scores = score(*rows, annotations=objects)
    assert scores['det/AP'] < 0.7 and scores['det/AR100'] == pytest.approx(2 / 3)
    assert message.text.count('1 of 2 images has more than 100 objects of one class: AP and AR count the best 100') == 2
    assert '50 of 150 predictions do not count' in message.text
    message.clear()
    wide = score(*rows, annotations=objects, max_detections=150)
    assert wide['det/AP'] == pytest.approx(1) and wide['det/AR150'] == 1 and 'det/AR100' not in wide
    assert 'more than' not in message.text and 'do not count' not in message.text


def test_images_without_size_matter_only_where_masks_are_rasterised(score, tmp_path):
    def more(*rows):
        actual = tmp_path / 'more.json'
        actual.write_text(json.dumps(list(rows)))
        return evaluate_coco(tmp_path / 'annotations.json', actual, iou_type='segm')

    score(row(), row(2), iou_type='segm')
    content = json.loads((tmp_path / 'annotations.json').read_text())
    content['images'].append(dict(id=3, file_name='3.png'))
    (tmp_path / 'annotations.json').write_text(json.dumps(content))
    assert more(row(), row(2))['det/segm/AP'] == pytest.approx(1)
    with pytest.raises(DataError, match='prediction 2') as caught:
        more(row(), row(3))
    assert 'does not give the size of its image' in caught.value.why and 'width and height' in caught.value.fix
