"""Warnings of check_data.py: near duplicates, objects labelled twice, unusual boxes, rare and missing classes."""

from __future__ import annotations

import json
import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tools import check_data
from vitdense.data.coco.parse import read_coco
from vitdense.data.files.images import from_pil
from vitdense.dataset_checks.labelled_objects import odd_objects, rare_classes
from vitdense.dataset_checks.near_duplicates import fingerprint, near_duplicates


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return a smooth random image of (width, height) `size`."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def group(images):
    rows = {number: fingerprint(from_pil(image)) for number, image in enumerate(images)}
    return near_duplicates({number: row for number, row in rows.items() if row is not None})


def test_copies_of_other_size_compression_and_brightness_are_one_group_and_other_scenes_are_not(tmp_path):
    scene(1).save(tmp_path / 'a.jpg', quality=40)
    brighter = Image.fromarray(np.clip(np.asarray(scene(1), np.float32) * 1.15, 0, 255).astype(np.uint8))
    copies = [scene(1), scene(1).resize((48, 36)), Image.open(tmp_path / 'a.jpg').convert('RGB'), brighter]
    assert group([*copies, *(scene(seed) for seed in range(2, 30))]) == [[0, 1, 2, 3]]


def test_plain_images_are_like_no_other():
    assert group([Image.new('RGB', (50, 50), shade) for shade in ('black', 'white', 'red')]) == []


def test_groups_follow_pairs_over_several_images(monkeypatch):
    """a is like b and b like c: one group, also where the comparison is done in pieces."""
    monkeypatch.setattr('vitdense.dataset_checks.near_duplicates.ROWS', 2)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((7, 256)).astype(np.float32)
    rows[4], rows[6] = rows[1] + 0.3 * rng.standard_normal(256), rows[1] - 0.3 * rng.standard_normal(256)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows[4] @ rows[6] < 0.95 < min(rows[1] @ rows[4], rows[1] @ rows[6])
    assert near_duplicates(dict(enumerate(rows))) == [[1, 4, 6]]


def test_many_copies_are_one_group_in_little_memory():
    """Every second frame of a film that does not move: a list of all 2 million pairs would need 32 MB."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4000, 256)).astype(np.float32)
    rows[::2] = rows[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    tracemalloc.start()
    groups = near_duplicates(dict(enumerate(rows)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups == [list(range(0, 4000, 2))] and peak < 24e6  # 4 MB of the table, 8 MB of products


def test_of_very_many_objects_in_an_image_equal_boxes_are_found(tmp_path):
    boxes = [[number % 100, number // 100, 5, 5] for number in range(6000)]
    boxes[4000] = boxes[17]
    images = [dict(id=1, file_name='a.png', width=200, height=200)]
    rows = [dict(id=k, image_id=1, category_id=1, bbox=box, area=25, iscrowd=0) for k, box in enumerate(boxes)]
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(images=images, annotations=rows, categories=[dict(id=1, name='dot')])))
    arrays, info = read_coco(path)
    assert [(actual.kind, actual.where) for actual in odd_objects(arrays, info)] == [('twice', '4000')]


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """The json report, output and page of a folder with one fault of each kind."""
    root = tmp_path_factory.mktemp('yard')
    for split, seeds in dict(train=range(25), valid=[3, 40, 41]).items():
        (root / split).mkdir()
        images, annotations = [], []
        for seed in seeds:
            scene(seed, (48, 36) if split == 'valid' else (96, 72)).save(root / split / f'{seed}.png')
            images.append(dict(id=seed, file_name=f'{seed}.png', width=48 if split == 'valid' else 96))
            images[-1]['height'] = 36 if split == 'valid' else 72
            annotations.append(dict(image_id=seed, category_id=1, bbox=[5, 5, 10 + seed % 3, 10], iscrowd=0))
        if split == 'train':
            annotations.append(annotations[0] | dict(bbox=[5, 5, 10.1, 10]))  # id 26: the object of id 1
            annotations.append(annotations[1] | dict(bbox=[0, 0, 90, 70]))  # id 27
            annotations.append(annotations[2] | dict(category_id=2, bbox=[5, 5, 9, 9]))  # id 28
        content = dict(images=images, categories=[dict(id=1, name='cat'), dict(id=2, name='<dog>')])
        content['annotations'] = [row | dict(id=k, area=100) for k, row in enumerate(annotations, 1)]
        (root / split / '_annotations.coco.json').write_text(json.dumps(content))
    out, page = root / 'report.json', root / 'pages/report.html'
    assert check_data.main([str(root), '--out', str(out), '--report', str(page)]) == 0
    return json.loads(out.read_text()), page.read_text()


def kinds(findings):
    return [(finding['kind'], finding['where']) for finding in findings]


def test_warnings_of_a_split_name_the_annotation_or_class(report):
    train = report[0]['parts']['train/_annotations.coco.json']
    assert kinds(train['warnings']) == [('twice', '26'), ('unusual', '27'), ('rare', '<dog>')]
    assert train['warnings'][0]['reason'] == 'cat: the same box as annotation 1, in 0.png'
    assert train['findings'] == [] and train['counts'] == {}


def test_all_of_a_few_equally_small_classes_are_rare():
    findings = [(finding.where, finding.reason) for finding in rare_classes({'a': 9, 'b': 9, 'c': 0}, 'images')]
    assert findings == [('a', '9 images'), ('b', '9 images')]
    (finding,) = rare_classes({'a': 5000, 'b': 49, 'c': 50}, 'images')
    assert (finding.where, finding.reason) == ('b', '49 images; a has 5,000')


def test_label_maps_of_a_folder_have_the_classes_of_its_file(tmp_path):
    data, out = tmp_path / 'data', tmp_path / 'report.json'
    for name, pixels in (('images', np.full((8, 8, 3), 7)), ('masks', np.arange(64).reshape(8, 8) % 3)):
        (data / name).mkdir(parents=True)
        Image.fromarray(pixels.astype(np.uint8)).save(data / name / 'a.png')
    (data / 'classes.txt').write_text('ground\nroad\nsky\n')
    assert check_data.main([str(data), '--out', str(out)]) == 0
    (part,) = json.loads(out.read_text())['parts'].values()
    assert [row['class'] for row in part['classes']] == ['ground', 'road', 'sky']
    (data / 'classes.txt').write_text('ground\nroad\n')  # 2 is no class
    assert check_data.main([str(data)]) == 3


def test_images_that_two_splits_share_and_classes_that_one_lacks_are_named(report):
    shared, missing = report[0]['across_splits']
    assert shared['kind'] == 'shared' and shared['reason'] == 'train/3.png, valid/3.png'
    assert (missing['kind'], missing['where'], missing['reason']) == (
        'missing',
        'valid/_annotations.coco.json',
        'no <dog>',
    )


def test_the_page_shows_samples_of_each_split_and_duplicates_without_any_other_file(report):
    page = report[1]
    assert page.count('<img src="data:image/jpeg;base64,') == 12 + 3 + 2  # of 25, of 3, and the pair
    assert '&lt;dog&gt;' in page and '<dog>' not in page
    assert not re.search(r'(src|href)="(?!data:)', page) and 'http' not in page
