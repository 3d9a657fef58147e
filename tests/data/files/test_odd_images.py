"""What check_data says about images that are odd without being broken: dark 16 bits, turns, palettes, one class."""

import json

import numpy as np
import pytest
from PIL import Image

from vitdense.dataset_checks.check_class_folders import check_folders
from vitdense.dataset_checks.check_coco import check_coco
from vitdense.dataset_checks.check_label_maps import check_labels


def put(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """Two images of 12 bits, one of them turned upside down by its EXIF block, with boxes, masks and class folders."""
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    for number, name in enumerate(('a/0.png', 'b/1.png')):
        image = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
        put(tmp_path / 'i' / name, image, **({'exif': upside_down} if number else {}))
        put(tmp_path / 'm' / name, np.resize(np.array([0, 1], np.uint8), (6, 8)))
    images = [dict(id=k, file_name=name, width=8, height=6) for k, name in enumerate(('a/0.png', 'b/1.png'))]
    boxes = [dict(id=k + 1, image_id=k, category_id=1, bbox=[1, 1, 3, 3], area=9, iscrowd=0) for k in range(2)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='x')])
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    'check',
    [
        lambda tree, **options: check_coco(tree / 'boxes.json', tree / 'i', **options),
        lambda tree, **options: check_labels(tree / 'm', tree / 'i', classes=['a', 'b'], **options),
        lambda tree, **options: check_folders(tree / 'i', **options),
    ],
)
def test_dark_sixteen_bits_are_a_finding_and_turns_are_a_fact(tree, check):
    report = check(tree)
    (finding,) = [finding for finding in report.findings if finding.kind == 'range']
    assert 'whose brightest value is 4095: 12 bits? then value_range=(0, 4095)' in finding.reason
    assert report.counts['range'] == 1
    assert [value for name, value in report.summary if 'EXIF' in name][0].startswith('1, such as 1.png')
    assert check(tree, value_range=(0, 4095)).findings == []


def test_label_maps_of_one_class_are_a_finding(tree):
    report = check_labels(tree / 'm', classes=['a', 'b'], reduce_zero_label=True)
    assert [finding.kind for finding in report.findings] == ['no_objects'] and "'a'" in report.findings[0].reason


def test_a_palette_numbered_anew_is_a_finding(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 15]], np.uint8), 'P')
    colors = [[0, 0, 0], [192, 128, 128]] + [[0, 0, 0]] * 13 + [[128, 0, 0]]  # VOC's 0, 15 and 1
    image.putpalette([channel for color in colors for channel in color])
    (tmp_path / 'm').mkdir()
    image.save(tmp_path / 'm/a.png')
    (finding,) = check_labels(tmp_path / 'm', classes='voc').findings
    assert finding.kind == 'label' and "number 1 is class 'aeroplane' but has the colour of 'person'" in finding.reason
