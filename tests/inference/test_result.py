"""Typed results: access, selection and conversion."""

from __future__ import annotations

import io
import json
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from vitdense.errors import ConfigError, PredictionError
from vitdense.inference.calibration import calibrate, calibrated_metainfo
from vitdense.inference.result import Result
from vitdense.ops.packed_masks import PackedMasks
from vitdense.types import ImageClass, Instances, SemanticMap

BOXES = torch.tensor([[1.0, 2, 11, 22], [0, 0, 8, 8], [5, 5, 9, 9], [3, 3, 4, 4]])
META = {
    'classes': {'labels': ['car', 'bus'], 'semantic': ['road', 'sky'], 'image_label': ['day', 'night']},
    'category_ids': {'labels': [3, 7]},
}


def masks(boxes=BOXES) -> torch.Tensor:
    channels = torch.zeros(len(boxes), 24, 32, dtype=torch.bool)
    for pixels, (left, top, right, bottom) in zip(channels, boxes.int().tolist(), strict=True):
        pixels[top:bottom, left:right] = True
    return channels


def result(*, with_masks=False, **more) -> Result:
    actual = Instances(BOXES, torch.tensor([0.9, 0.8, 0.5, 0.1]), torch.tensor([1, 0, 1, 0]))
    if with_masks:
        actual = actual._replace(masks=PackedMasks.of(masks()))
    labels = torch.zeros(24, 32, dtype=torch.uint8)
    labels[:12] = 1
    heads = {'det': actual, 'sem': SemanticMap(labels), 'cls': ImageClass(torch.tensor([0.3, 0.7]))}
    return Result(np.zeros((24, 32, 3), np.uint8), heads | more, META, path='photos/000042.jpg')


def test_a_result_gives_the_objects_of_at_least_its_score_the_pixels_and_the_class():
    each = result()
    assert each.boxes.tolist() == BOXES[:3].tolist() and each.labels.tolist() == [1, 0, 1]
    assert each.names == ['bus', 'car', 'bus'] and each.scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert each.masks is None and each.image_class == 'night' and each.semantic[0, 0] == 1
    assert len(each) == 3 and [(item.name, item.category_id) for item in each] == [('bus', 7), ('car', 3), ('bus', 7)]


def test_each_class_has_its_own_threshold_where_the_model_has_some():
    points = {'det': {'threshold': [0.05, 0.6], 'temperature': 2.0, 'ece': [0.2, 0.1]}}
    each = replace(result(), metainfo=META | {'operating_points': points})
    assert each.names == ['bus', 'car', 'car'] and len(each.filter(min_score=0.5)) == 3 and len(each) == 3
    assert each.summary()['det'] == {'car': 2, 'bus': 1}
    assert not np.array_equal(each.draw(), each.draw(min_score=0.3))
    unknown = {'det': {**points['det'], 'threshold': [None, None]}}
    assert replace(each, metainfo=META | {'operating_points': unknown}).names == result().names


def test_calibrated_scores_keep_the_same_objects():
    points = {'det': {'threshold': [0.05, 0.6], 'temperature': 2.0, 'ece': [0.2, 0.1]}}
    plain = replace(result(), metainfo=META | {'operating_points': points})
    metainfo = calibrated_metainfo(plain.metainfo)
    scaled = replace(plain, predictions=calibrate(plain.predictions, metainfo), metainfo=metainfo)
    assert scaled.names == plain.names and scaled.scores[0] == pytest.approx(
        0.75
    )  # logit(0.9) = log 9, half of it log 3
    assert torch.equal(scaled['cls'].scores, plain['cls'].scores)
    with pytest.raises(ConfigError, match='no temperature'):
        calibrated_metainfo(META)


def test_objects_are_filtered_by_class_and_score_and_other_heads_stay():
    assert [item.score for item in result().filter(classes=['bus'])] == pytest.approx([0.9, 0.5])
    assert len(result().filter(min_score=0.05)) == 4 and len(result().filter(min_score=0.85)) == 1
    with pytest.raises(ConfigError, match="min_score = 'much'"):
        result().filter(min_score='much')
    few = result().filter(classes=['car'], min_score=0.05)
    assert few.names == ['car', 'car'] and few.image_class == 'night' and 'sem' in few.predictions
    assert few.filter(min_score=0.5).names == ['car']


def test_classes_without_a_name_are_selected_by_their_number():
    actual = Instances(BOXES[:2], torch.tensor([0.9, 0.8]), torch.tensor([4, 0]))
    odd = Result(np.zeros((24, 32, 3), np.uint8), {'det': actual}, META)
    assert odd.filter(classes=['class 4']).labels.tolist() == [4] and odd.filter(classes=['car']).labels.tolist() == [0]


@pytest.mark.parametrize('classes', [['truck'], 'bus'])
def test_a_class_that_the_model_does_not_have_is_refused(classes):
    with pytest.raises(ConfigError, match='classes='):
        result().filter(classes=classes)


def test_of_two_heads_of_a_kind_one_is_chosen():
    two = result(second=Instances(BOXES[:1], torch.ones(1), torch.zeros(1, dtype=torch.int64)))
    assert len(two) == 4
    with pytest.raises(ConfigError, match='several heads'):
        _ = two.boxes
    with pytest.raises(ConfigError, match='several heads'):
        two.to_coco()
    assert len(two.only('second').boxes) == 1
    with pytest.raises(ConfigError, match='the model predicts no objects') as caught:
        _ = two.only('sem').boxes
    assert caught.value.fix == 'use result.semantic'
    with pytest.raises(KeyError, match='the heads are'):
        _ = two['det2']


def test_hasattr_shows_what_a_model_predicts():
    only_pixels = result().only('sem')
    assert hasattr(only_pixels, 'semantic') and not hasattr(only_pixels, 'boxes')
    assert getattr(only_pixels, 'image_class', None) is None
    error = pickle.loads(pickle.dumps(pytest.raises(PredictionError, lambda: only_pixels.boxes).value))
    assert isinstance(error, ConfigError) and error.fix == 'use result.semantic'


def test_a_result_is_true_if_it_has_objects_where_a_head_detects_them():
    assert result() and not result().filter(min_score=0.95)
    assert result().only('sem')


def test_masks_stay_packed_and_come_out_as_they_went_in():
    packed = PackedMasks.of(masks())
    assert torch.equal(packed.tensor(), masks()) and np.array_equal(np.asarray(packed), masks().numpy())
    assert torch.equal(packed[2], masks()[2])
    for rows in (np.array([True, False, True, False]), np.array([2, 0]), slice(1, 3), np.array([], np.int64)):
        assert np.array_equal(np.asarray(packed[rows]), masks().numpy()[rows])
    assert torch.equal(result(with_masks=True).masks, masks()[:3])
    assert [item.mask.sum() for item in result(with_masks=True)] == [200, 64, 16]
    plain = result()
    sampled = Result(plain.image, {'det': plain['det']._replace(masks=masks())}, META).draw()
    assert np.array_equal(result(with_masks=True).only('det').draw(), sampled)


def test_coco_rows_are_what_pycocotools_reads():
    rows = result(with_masks=True).to_coco()
    assert [row['category_id'] for row in rows] == [7, 3, 7] and {row['image_id'] for row in rows} == {42}
    assert rows[0]['bbox'] == [1, 2, 10, 20]
    json.dumps(rows)
    assert np.array_equal(coco_mask.decode(rows[0]['segmentation']), masks()[0].numpy())
    assert {row['image_id'] for row in result().to_coco(7)} == {7} and 'segmentation' not in result().to_coco()[0]


def test_plain_values_are_json():
    content = json.loads(result().to_json(indent=1))
    assert content == result().to_dict()
    assert content['file'] == 'photos/000042.jpg' and content['size'] == [24, 32]
    assert content['heads'] == {
        'det': {'bus': 2, 'car': 1},
        'sem': {'road': 0.5, 'sky': 0.5},
        'cls': {'night': 0.7, 'day': 0.3},
    }
    wanted = {'name': 'bus', 'class_id': 1, 'category_id': 7, 'score': 0.9, 'box': [1, 2, 11, 22]}
    assert content['objects']['det'][0] == wanted


def test_a_result_shows_itself(monkeypatch):
    assert repr(result().only('det', 'cls')) == (
        "Result('photos/000042.jpg', 32 x 24 pixels; det: bus 2, car 1; cls: night 70 %, day 30 %)"
    )
    with Image.open(io.BytesIO(result()._repr_png_())) as image:
        assert image.format == 'PNG'
    monkeypatch.setitem(sys.modules, 'supervision', SimpleNamespace(Detections=dict))
    actual = result(with_masks=True).to_supervision()
    assert (
        actual['xyxy'].shape == (3, 4)
        and actual['mask'].shape == (3, 24, 32)
        and actual['class_id'].tolist() == [1, 0, 1]
    )
    assert actual['data']['class_name'].tolist() == ['bus', 'car', 'bus']
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(ImportError, match='pip install supervision'):
        result().to_supervision()
