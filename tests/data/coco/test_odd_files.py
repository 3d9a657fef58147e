"""Files of other programs: their kind is reported, and what can be read of them is read."""

import json
import logging

import pytest
from PIL import Image

from vitdense.data.coco.dataset import CocoDetection
from vitdense.dataset_checks.check_coco import check_coco
from vitdense.errors import ConfigError, DataError
from vitdense.scoring.saved_predictions import evaluate_coco

RING = [[10, 10, 40, 10, 40, 30, 10, 30]]


@pytest.fixture
def log_text(caplog, monkeypatch):
    monkeypatch.setattr('vitdense.scoring.saved_predictions.start_logging', lambda folder: None)
    monkeypatch.setattr(logging.getLogger('vitdense'), 'propagate', True)
    caplog.set_level(logging.INFO, 'vitdense')
    return caplog


class Tree:
    """A file of two images of 80 x 60 and its folder of images."""

    def __init__(self, root):
        self.root, self.path, self.results = root, root / 'a.json', root / 'results.json'
        (root / 'images').mkdir()
        for number in (1, 2):
            Image.new('RGB', (80, 60)).save(root / 'images' / f'{number}.png')

    def write(self, *annotations, **changes):
        content = dict(
            images=[dict(id=k, file_name=f'{k}.png', width=80, height=60) for k in (1, 2)],
            categories=[dict(id=4, name='cat'), dict(id=9, name='dog')],
            annotations=list(annotations),
        )
        self.path.write_text(json.dumps(content | changes))

    def open(self, **options):
        return CocoDetection('a.json', 'images', root=self.root, **options)

    def score(self, *rows, **options):
        self.results.write_text(json.dumps(rows))
        return evaluate_coco(self.path, self.results, **options)

    def kinds(self):
        return {(finding.kind, finding.where) for finding in check_coco(self.path, self.root / 'images').findings}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def annotation(number, bbox=(10, 10, 30, 20), **more):
    return dict(id=number, image_id=1, category_id=4, bbox=list(bbox), area=600, iscrowd=0, segmentation=RING) | more


OTHER_KINDS = {
    'a panoptic file': dict(
        annotations=[dict(image_id=1, file_name='1.png', segments_info=[dict(id=1, category_id=4)])]
    ),
    'captions': dict(annotations=[dict(id=1, image_id=1, caption='a cat')]),
    'results': [dict(image_id=1, category_id=4, bbox=[1, 1, 5, 5], score=0.5)],
}


@pytest.mark.parametrize('kind', OTHER_KINDS)
def test_files_of_another_kind_are_called_what_they_are(tree, kind):
    content = OTHER_KINDS[kind]
    if isinstance(content, dict):
        tree.write(**content)
    else:
        tree.path.write_text(json.dumps(content))
    for look in (tree.open, lambda: check_coco(tree.path), lambda: tree.score()):
        with pytest.raises(DataError) as caught:
            look()
        words = {'a panoptic file': 'is a COCO panoptic file', 'captions': 'are captions', 'results': 'results file'}
        assert words[kind] in str(caught.value) and caught.value.fix


def test_a_file_without_images_is_an_error(tree):
    tree.write(images=[], annotations=[])
    for look in (lambda: tree.open(evaluation=True), tree.score):
        with pytest.raises(DataError, match=r'a\.json lists no images'):
            look()
    assert ('no_objects', 'a.json') in tree.kinds()


ROOTS = {
    'by its name': [dict(id=0, name='pets', supercategory='none')],
    'called like a class': [dict(id=0, name='cat', supercategory='none')],
}


@pytest.mark.parametrize('root', ROOTS)
def test_a_root_category_is_no_class(tree, root, log_text):
    """Roboflow's exports begin with one."""
    leaves = [dict(id=4, name='cat', supercategory='pets'), dict(id=9, name='dog', supercategory='pets')]
    tree.write(annotation(1), annotation(2, category_id=9), categories=[*ROOTS[root], *leaves])
    data = tree.open()
    assert data.metainfo['classes']['labels'] == ['cat', 'dog'] and data[0].target.labels.tolist() == [0, 1]
    assert data.metainfo['category_ids']['labels'] == [4, 9] and '(id 0) is left out' in log_text.text
    report = check_coco(tree.path)
    assert [row[1] for row in report.classes] == ['4', '9'] and 'id 0 only groups' in dict(report.summary)['categories']
    other = tree.open(evaluation=True)
    other.set_classes(data.metainfo['classes'])
    assert other[0].target.labels.tolist() == [0, 1]
    rows = [dict(image_id=1, category_id=number, bbox=[10, 10, 30, 20], score=0.5) for number in (0, 4, 9)]
    assert tree.score(*rows)['det/AP'] == pytest.approx(1)  # as in pycocotools, a class without objects has no AP
    with pytest.raises(ConfigError, match="classes = 'pets'"):
        tree.open(classes=['pets'])


def test_a_category_that_has_objects_or_other_parents_is_a_class(tree):
    root, leaf = dict(id=0, name='pets', supercategory='none'), dict(id=4, name='cat', supercategory='pets')
    tree.write(annotation(1), annotation(2, category_id=0), categories=[root, leaf])
    assert tree.open().metainfo['classes']['labels'] == ['pets', 'cat']
    tree.write(annotation(1), categories=[root, leaf, dict(id=5, name='car', supercategory='vehicle')])
    assert len(tree.open().metainfo['classes']['labels']) == 3
    tree.write(annotation(1), categories=[dict(id=0, name='pets'), dict(id=4, name='cat')])
    assert len(tree.open().metainfo['classes']['labels']) == 2


def test_crowds_alone_are_an_error_in_training(tree, log_text):
    tree.write(annotation(1, iscrowd=1), annotation(2, iscrowd='1'))
    with pytest.raises(DataError, match=r'no object to train on in a\.json') as caught:
        tree.open()
    assert 'all 2 annotations are crowds' in caught.value.why and 'iscrowd 0' in caught.value.fix
    assert ('no_objects', 'a.json') in tree.kinds()
    assert len(tree.open(evaluation=True)) == 2
    assert set(tree.score().values()) == {None} and 'no object to find' in log_text.text


def test_objects_that_the_chosen_classes_and_images_lack_are_missed_before_training(tree):
    tree.write(annotation(1, image_id=2), annotation(2, image_id=2, category_id=9, iscrowd=1))
    with pytest.raises(DataError, match='no object to train on'):
        tree.open(classes=['dog'])
    with pytest.raises(DataError, match='no object to train on') as caught:
        tree.open(num_images=1)
    assert 'of the classes and images that are chosen' in caught.value.why
    assert len(tree.open(classes=['cat'])) == 2


@pytest.mark.parametrize('masks', [False, True])
def test_a_box_can_come_from_its_segmentation(tree, log_text, masks):
    from pycocotools import mask as coco

    runs = coco.merge(coco.frPyObjects(RING, 60, 80))
    runs = dict(size=[60, 80], counts=runs['counts'].decode())
    without = annotation(3)
    del without['bbox']
    tree.write(annotation(1, bbox=[]), annotation(2, bbox=[], segmentation=runs), without)
    assert tree.open(masks=masks)[0].target.boxes.tolist() == [[10, 10, 40, 30]] * 3
    assert tree.kinds() == {('box_from_segmentation', number) for number in '123'}
    assert 'taken from segmentations 3' in log_text.text
    rows = [dict(image_id=1, category_id=4, bbox=[10, 10, 30, 20], score=0.5)] * 3
    assert tree.score(*rows)['det/AP'] == pytest.approx(1)
    tree.write(annotation(1, bbox=[], segmentation=[]))
    with pytest.raises(DataError, match='cannot be used'):
        tree.open()
    tree.write(annotation(1, bbox=[1, 2]))  # numbers that are wrong are not overruled
    assert ('box', '1') in tree.kinds()


def test_polygons_as_points_are_read(tree):
    points = [[10, 10], [40, 10], [40, 30], [10, 30]]
    tree.write(annotation(1), annotation(2, segmentation=points), annotation(3, segmentation=[points]))
    assert tree.kinds() == set()
    assert tree.open(masks=True)[0].target.masks.sum((1, 2)).tolist() == [600] * 3


def test_one_bad_polygon_is_left_out(tree, log_text):
    tree.write(
        annotation(1, segmentation=[*RING, [1, 2, 3, 4]]), annotation(2, image_id=2, segmentation=[[1, 2, 3, 4]])
    )
    assert tree.kinds() == {('invalid_polygon', '1'), ('segmentation', '2')}
    with pytest.raises(DataError) as caught:
        tree.open(masks=True)
    assert 'segmentation 2' in caught.value.why and 'skip_unmasked=True' in caught.value.fix
    data = tree.open(masks=True, skip_unmasked=True)
    assert len(data) == 1 and data[0].target.masks.sum() == 600 and 'with polygons that are left out 1' in log_text.text


def test_boxes_that_cvat_rotates_are_named(tree, log_text):
    turned = [annotation(k, attributes=dict(rotation=angle)) for k, angle in enumerate((30.0, 0.0, 360, -45), 1)]
    tree.write(*turned, annotation(9, attributes=[]))
    assert tree.kinds() == {('rotation', '1'), ('rotation', '4')}
    tree.open()
    assert 'rotation of CVAT' in log_text.text


def test_boxes_as_fractions_are_named(tree, log_text):
    tree.write(annotation(1, (0.1, 0.2, 0.3, 0.5)), annotation(2, (0, 0, 1, 1)))
    for evaluation in (False, True):
        with pytest.raises(DataError, match='fractions of the image'):
            tree.open(evaluation=evaluation)
    assert ('fractions', 'a.json') in tree.kinds()
    tree.score()
    assert 'are they fractions of the image' in log_text.text


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('sub\\1.png', "write 'sub/1.png'"),
        ('C:\\1.png', 'leads out'),
        ('\\1.png', 'leads out'),
        ('a\\..\\1.png', 'leads out'),
    ],
)
def test_names_as_windows_writes_them_are_called_so(tree, name, words):
    images = [dict(id=1, file_name=name, width=80, height=60), dict(id=2, file_name='2.png', width=80, height=60)]
    tree.write(annotation(1), images=images)
    with pytest.raises(DataError) as caught:
        tree.open()
    assert words in caught.value.why and ('leads out' in words) == ('leads out' in str(caught.value))
    assert tree.kinds() == {('name', '1')}


def test_names_that_are_no_text(tree):
    """A name in another encoding is written with lone surrogates by Python; others cannot be names."""
    import os

    odd = os.fsdecode(b'caf\xe9.png')
    Image.new('RGB', (80, 60)).save(tree.root / 'images' / '1.tmp.png')
    os.rename(tree.root / 'images' / '1.tmp.png', tree.root / 'images' / odd)
    images = [dict(id=1, file_name=odd, width=80, height=60), dict(id=2, file_name='2.png', width=80, height=60)]
    tree.write(annotation(1), images=images)
    assert tree.kinds() == set() and tree.open()[0].img.shape == (3, 60, 80) and tree.open().missing() == []
    images[0]['file_name'] = 'a\ud800.png'
    tree.write(annotation(1), images=images)
    with pytest.raises(DataError) as caught:
        tree.open()
    assert 'no file name can have' in caught.value.why and ('name', '1') in tree.kinds()
    assert set(tree.score().values()) != set()
