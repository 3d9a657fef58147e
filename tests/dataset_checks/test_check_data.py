"""A report names everything that is wrong, in images and labels that stay as they are."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from vitdense.dataset_checks.check_coco import check_coco
from vitdense.dataset_checks.check_label_maps import check_labels
from vitdense.errors import DataError


@pytest.fixture
def tree(tmp_path):
    """Six good boxes with polygons on three images; `write(more)` adds annotations."""

    class Tree:
        path, images = tmp_path / 'a.json', tmp_path / 'images'

        def __init__(self):
            self.images.mkdir()
            for number in (1, 2, 3):
                Image.new('RGB', (80, 60)).save(self.images / f'{number}.png')

        def write(self, *more, **changes):
            images = [dict(id=k, file_name=f'{k}.png', width=80, height=60) for k in (1, 2, 3)]
            good = [annotation(k, image_id=1 + k % 2) for k in range(1, 7)]
            content = dict(images=images, categories=[dict(id=4, name='cat'), dict(id=9, name='dog')])
            self.path.write_text(json.dumps(content | dict(annotations=[*good, *more]) | changes))
            return self

        def kinds(self):
            report = check_coco(self.path, self.images)
            return {(finding.kind, finding.where) for finding in report.findings}

    return Tree()


def annotation(number, bbox=(10, 10, 30, 20), **more):
    ring = [[10, 10, 40, 10, 40, 30, 10, 30]]
    return dict(id=number, image_id=1, category_id=4, bbox=list(bbox), area=600, iscrowd=0, segmentation=ring) | more


def test_nothing_is_wrong_with_a_good_file(tree):
    report = check_coco(tree.write().path, tree.images)
    assert report.findings == [] and report.counts == {}
    assert dict(report.summary)['images without annotations'] == '1'
    assert dict(report.summary)['categories'] == '2, ids 4 ... 9, with gaps'
    assert report.classes == [('cat', '4', '6', '100.0 %', '2', '0'), ('dog', '9', '0', '0.0 %', '0', '0')]


def test_boxes_that_are_wrong_are_listed_with_their_ids(tree):
    """FI-06: width 0, outside, partly outside, negative width."""
    boxes = {20: (5, 5, 0, 9), 21: (90, 5, 9, 9), 22: (70, 50, 20, 20), 23: (30, 5, -9, 9)}
    tree.write(*(annotation(number, box) for number, box in boxes.items()))
    assert tree.kinds() == {('empty', '20'), ('empty', '21'), ('outside', '22'), ('empty', '23')}


def test_empty_annotations_are_listed_with_the_reason(tree):
    """FI-07."""
    wrong = {
        30: dict(bbox=[1, 2, float('nan'), 4]),
        31: dict(bbox='1 2 3 4'),
        32: dict(bbox=[1, 2, 3]),
        33: dict(segmentation=[[1, 2, 3, float('nan'), 5, 6]]),
        34: dict(segmentation=[[1, 2, 3, float('inf'), 5, 6]]),
        35: dict(segmentation=[[1, 2, 3, 1e9, 5, 6]]),
        36: dict(segmentation=[]),
        37: dict(segmentation=[[1, 2, 3, 4]]),
        38: dict(segmentation=dict(size=[100000, 100000], counts=[10**10])),
        39: dict(category_id=5),
        40: dict(image_id=77),
        41: dict(area=float('nan')),
    }
    tree.write(*(annotation(number) | change for number, change in wrong.items()), annotation('x'), annotation(1))
    actual = tree.kinds()
    assert {where for _, where in actual} == {*map(str, wrong), 'x', '1'}
    kinds = {where: kind for kind, where in actual}
    assert [kinds[str(number)] for number in wrong] == (
        ['box'] * 3
        + ['segmentation'] * 3
        + ['empty_segmentation', 'segmentation', 'segmentation', 'category', 'missing_image', 'area']
    )
    assert kinds['x'] == 'id' and kinds['1'] == 'duplicate_id'


def test_corners_and_files_without_boxes_are_found(tree):
    tree.write(annotations=[annotation(k, (8 * k, 5, 8 * k + 30, 50)) for k in range(1, 6)])
    report = check_coco(tree.path)
    assert report.findings[-1].reason == '40% of boxes leave the image if read as xywh; they fit as xyxy'
    report = check_coco(tree.write(annotations=[]).path)
    assert [finding.reason for finding in report.findings] == ['no annotations in a.json']
    boxes_only = [annotation(k, segmentation=[]) for k in (1, 2)]
    assert check_coco(tree.write(annotations=boxes_only).path).findings == []


def test_images_are_opened_and_measured_and_never_outside(tree):
    tree.write()
    content = json.loads(tree.path.read_text())
    content['images'] += [dict(id=4, file_name='../a.json', width=1, height=1), dict(id='5', file_name='5.png')]
    tree.path.write_text(json.dumps(content))
    Image.new('RGB', (60, 80)).save(tree.images / '2.png')
    data = (tree.images / '3.png').read_bytes()
    (tree.images / '3.png').write_bytes(data[: len(data) // 2])
    Image.new('RGB', (60, 80)).save(tree.images / '5.png')
    assert tree.kinds() == {('size', '2'), ('image', '3'), ('name', '4'), ('image', '4'), ('size', '5')}
    reasons = {finding.where: finding.reason for finding in check_coco(tree.path, tree.images).findings}
    assert 'EXIF' in reasons['2'] and 'truncated' in reasons['3']


def test_the_real_file_has_one_box_too_thin(shared):
    tree = shared / 'coco_mini480'
    before = hashlib.sha256((tree / 'annotations/instances_train2017.json').read_bytes()).hexdigest()
    report = check_coco(tree / 'annotations/instances_train2017.json')
    assert [(finding.kind, finding.where) for finding in report.findings] == [('empty', '900000000781')]
    assert dict(report.summary)['annotations'] == '2,540' and dict(report.summary)['crowds'] == '25'
    assert hashlib.sha256((tree / 'annotations/instances_train2017.json').read_bytes()).hexdigest() == before


@pytest.fixture
def folders(tmp_path):
    for number in range(4):
        for name, image in (('images', Image.new('RGB', (8, 6))), ('labels', Image.new('L', (8, 6), number))):
            (tmp_path / name).mkdir(exist_ok=True)
            image.save(tmp_path / name / f'{number}.png')
    return tmp_path


def test_label_maps_are_counted(folders):
    report = check_labels(folders / 'labels', folders / 'images', classes=['a', 'b', 'c'], ignore=3)
    assert report.findings == []
    assert report.classes == [(name, '48', '25.0 %', '1') for name in ('a', 'b', 'c', 'ignored')]
    report = check_labels(folders / 'labels', classes=['a', 'b', 'c'], reduce_zero_label=True)
    assert [row[0] for row in report.classes] == ['a', 'b', 'c', 'ignored'] and report.findings == []
    assert [row[0] for row in check_labels(folders / 'labels').classes] == ['0', '1', '2', '3']


def test_label_maps_that_are_wrong_are_listed(folders):
    pixels = np.zeros((6, 8), np.uint8)
    pixels[2, 3] = 77
    Image.fromarray(pixels).save(folders / 'labels/0.png')
    Image.new('L', (6, 8)).save(folders / 'labels/1.png')
    (folders / 'images/2.png').write_bytes(b'nothing')
    (folders / 'labels/3.png').write_bytes(b'nothing')
    Image.new('L', (8, 6)).save(folders / 'labels/alone.png')
    Image.new('RGB', (8, 6)).save(folders / 'images/lonely.png')
    report = check_labels(folders / 'labels', folders / 'images', classes=['a', 'b', 'c', 'd'])
    assert {(finding.kind, finding.where) for finding in report.findings} == {
        ('label', '0.png'),
        ('size', '1.png'),
        ('image', '2.png'),
        ('label', '3.png'),
        ('match', 'alone.png'),
        ('match', 'lonely.png'),
    }
    assert any('values {77} not in 0..3 or ignore 255' in finding.reason for finding in report.findings)
    with pytest.raises(DataError, match='no folder of label maps'):
        check_labels(folders / 'nothing')
