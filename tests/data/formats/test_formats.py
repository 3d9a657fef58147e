"""Labels of VOC, YOLO and CSV files give the records of the COCO file with the same objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.data.coco.dataset import CocoDetection
from vitdense.errors import ConfigError, DataError

SIZES = {'a': (40, 80), 'b': (50, 100), 'c': (64, 64)}  # (H, W)
OBJECTS = {  # image -> [class, x1, y1, x2, y2]
    'a': [('dog', 8, 10, 40, 30), ('cat', 0, 0, 80, 40)],
    'b': [('cat', 20, 5, 60, 45)],
    'c': [],
}
CLASSES = ['cat', 'dog']


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images, and the COCO file of their objects."""
    (tmp_path / 'images').mkdir()
    content = {'images': [], 'annotations': [], 'categories': [{'id': k + 1, 'name': n} for k, n in enumerate(CLASSES)]}
    for number, (name, (height, width)) in enumerate(SIZES.items(), start=1):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{name}.png')
        content['images'].append({'id': number, 'file_name': f'{name}.png', 'height': height, 'width': width})
        for label, x1, y1, x2, y2 in OBJECTS[name]:
            box = [x1, y1, x2 - x1, y2 - y1]
            content['annotations'].append(
                {'id': len(content['annotations']) + 1, 'image_id': number, 'category_id': CLASSES.index(label) + 1}
                | {'bbox': box, 'area': box[2] * box[3], 'iscrowd': 0}
            )
    (tmp_path / 'coco.json').write_text(json.dumps(content))
    return tmp_path


def voc_file(name: str, objects: list[tuple], *, first: int = 1, more: str = '') -> str:
    """Return the XML of an image; `first` is the number of the first pixel."""
    height, width = SIZES[name]
    items = ''.join(
        f'<object><name>{label}</name><difficult>0</difficult>{more}<bndbox><xmin>{x1 + first}</xmin>'
        f'<ymin>{y1 + first}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
        for label, x1, y1, x2, y2 in objects
    )
    size = f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
    return f'<annotation><filename>{name}.png</filename>{size}{items}</annotation>'


def write_voc(root: Path, *, first: int = 1, more: str = '') -> None:
    (root / 'Annotations').mkdir()
    for name, objects in OBJECTS.items():
        (root / 'Annotations' / f'{name}.xml').write_text(voc_file(name, objects, first=first, more=more))


def write_yolo(root: Path, *, names: str = '[cat, dog]') -> None:
    (root / 'labels').mkdir()
    for name, objects in OBJECTS.items():
        height, width = SIZES[name]
        lines = [
            f'{CLASSES.index(label)} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} '
            f'{(y2 - y1) / height}'
            for label, x1, y1, x2, y2 in objects
        ]
        if lines:  # an image without objects has no file
            (root / 'labels' / f'{name}.txt').write_text('\n'.join(lines) + '\n')
    (root / 'data.yaml').write_text(f'names: {names}\nval: images\n')


def write_csv(root: Path, *, header: str = 'filename,width,height,class,xmin,ymin,xmax,ymax') -> None:
    lines = [header]
    for name, objects in OBJECTS.items():
        height, width = SIZES[name]
        lines += [f'{name}.png,{width},{height},{label},{x1},{y1},{x2},{y2}' for label, x1, y1, x2, y2 in objects]
        lines += [] if objects else [f'{name}.png,{width},{height},,,,,']
    (root / 'boxes.csv').write_text('\n'.join(lines))


READERS = {
    'voc': (write_voc, lambda root, **options: CocoDetection('Annotations', 'images', root=root, **options)),
    'yolo': (write_yolo, lambda root, **options: CocoDetection('data.yaml', '', root=root, split='val', **options)),
    'csv': (write_csv, lambda root, **options: CocoDetection('boxes.csv', 'images', root=root, **options)),
}


@pytest.mark.parametrize('kind', READERS)
@pytest.mark.parametrize('evaluation', [False, True])
def test_the_records_are_those_of_the_coco_file(root: Path, kind: str, evaluation: bool):
    write, read = READERS[kind]
    write(root)
    expected = CocoDetection('coco.json', 'images', root=root, evaluation=evaluation)
    actual = read(root, evaluation=evaluation)
    assert actual.metainfo['classes'] == expected.metainfo['classes'] and len(actual) == len(expected) == 3
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours.img == theirs.img).all() and ours.meta.size == theirs.meta.size
        for key in ('boxes', 'labels', 'iscrowd', 'area', 'annotation_ids'):
            np.testing.assert_allclose(getattr(ours.target, key), getattr(theirs.target, key), atol=1e-4, err_msg=key)


def test_voc_pixels_are_counted_from_one_unless_there_is_a_zero(root: Path):
    write_voc(root, first=0)
    boxes = CocoDetection('Annotations', 'images', root=root, evaluation=True)[0].target.boxes
    assert boxes.tolist() == [[8, 10, 40, 30], [0, 0, 80, 40]]


def test_difficult_objects_of_voc_are_ignored_in_evaluation(root: Path):
    write_voc(root, more='<difficult>1</difficult>')
    text = (root / 'Annotations' / 'a.xml').read_text().replace('<difficult>0</difficult>', '')
    (root / 'Annotations' / 'a.xml').write_text(text)
    target = CocoDetection('Annotations', 'images', root=root, evaluation=True)[0].target
    assert target.iscrowd.tolist() == [True, True]


def test_a_list_of_voc_chooses_images_and_all_files_say_which_classes_there_are(root: Path):
    write_voc(root)
    (root / 'ImageSets' / 'Main').mkdir(parents=True)
    (root / 'ImageSets' / 'Main' / 'val.txt').write_text('b\n')
    data = CocoDetection('Annotations', 'images', root=root, split='val')
    assert len(data) == 1 and data.metainfo['classes']['labels'] == CLASSES
    with pytest.raises(DataError, match="no list of images for 'test'"):
        CocoDetection('Annotations', 'images', root=root, split='test')


def test_polygons_of_yolo_are_masks(root: Path):
    write_yolo(root)
    (root / 'labels' / 'b.txt').write_text('0 0.2 0.1 0.6 0.1 0.6 0.9 0.2 0.9\n')
    for name in 'ac':
        (root / 'images' / f'{name}.png').unlink()
    (sample,) = list(CocoDetection('data.yaml', '', root=root, split='val', masks=True))
    assert sample.target.boxes.tolist() == [[20, 5, 60, 45]] and sample.target.area.tolist() == [1600]
    assert sample.target.masks.sum() == 1600 and sample.target.masks[0, 5:45, 20:60].all()


def test_roboflow_writes_paths_that_begin_one_folder_too_high(root: Path):
    write_yolo(root)
    (root / 'data.yaml').write_text('train: ../images\nval: ../images\nnc: 2\nnames: {0: cat, 1: dog}\n')
    assert len(CocoDetection('data.yaml', '', root=root, split='train')) == 3


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('0 0.5 0.5 0.2', '3 numbers behind the class'),
        ('0 0.5 0.5 0.2 0.2 0.9', '5 numbers behind the class'),
        ('2 0.5 0.5 0.2 0.2', 'class 2 is none of 0 ... 1'),
        ('0.5 0.5 0.5 0.2 0.2', 'class 0.5 is none'),
        ('0 40 20 10 10', 'not all are shares'),
        ('0 nan 0.5 0.2 0.2', 'not all are shares'),
        ('cat 0.5 0.5 0.2 0.2', 'not only numbers'),
    ],
)
def test_a_line_of_yolo_that_cannot_be_used_is_an_error_with_its_place(root: Path, line: str, reason: str):
    write_yolo(root)
    (root / 'labels' / 'a.txt').write_text(f'0 0.5 0.5 0.2 0.2\n{line}\n')
    with pytest.raises(DataError, match=f'1 labels cannot be used, such as labels/a.txt:2: {reason}'):
        CocoDetection('data.yaml', '', root=root, split='val')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('- 1', 'does not describe'),
        ('train: images', 'does not describe'),
        ('names: [a, b]\nnc: 3\nval: images', 'names are no list'),
        ('names: {1: a, 2: b}\nval: images', 'names are no list'),
        ('names: [a]\ntrain: images', "no split 'val'"),
        ('names: [a]\nval: nowhere', "'nowhere' does not exist"),
        ('names: [a]\nval: /usr/share', 'outside|no such file'),
        ('names: !!python/object/apply:os.system [ls]', 'does not describe'),
    ],
)
def test_descriptions_of_yolo_that_cannot_be_used(root: Path, text: str, message: str):
    write_yolo(root)
    (root / 'data.yaml').write_text(text)
    with pytest.raises(DataError, match=message):
        CocoDetection('data.yaml', '', root=root, split='val')


def test_yolo_needs_a_split(root: Path):
    write_yolo(root)
    with pytest.raises(ConfigError, match='need a split'):
        CocoDetection('data.yaml', '', root=root)


@pytest.mark.parametrize(
    'text',
    ['', 'no xml', '<a/>', '<!DOCTYPE x [<!ENTITY y "z">]><annotation>&y;</annotation>', '<annotation><object>'],
)
def test_files_that_are_no_voc_annotation_are_named(root: Path, text: str):
    write_voc(root)
    (root / 'Annotations' / 'b.xml').write_text(text)
    with pytest.raises(DataError, match='b.xml is no annotation of PASCAL VOC'):
        CocoDetection('Annotations', 'images', root=root)


def test_a_voc_box_without_numbers_and_a_file_without_image_are_named(root: Path):
    write_voc(root)
    broken = voc_file('b', OBJECTS['b']).replace('<xmax>60</xmax>', '<xmax>wide</xmax>')
    (root / 'Annotations' / 'b.xml').write_text(broken)
    with pytest.raises(DataError, match='b.xml, object 1: its bndbox'):
        CocoDetection('Annotations', 'images', root=root)
    (root / 'images' / 'a.png').unlink()
    with pytest.raises(DataError, match='1 of 3 XML files have no image, such as a.xml'):
        CocoDetection('Annotations', 'images', root=root)


def test_csv_columns_have_other_names_or_none(root: Path):
    lines = [f'{n}.png;{x1};{y1};{x2};{y2};{label}' for n, rows in OBJECTS.items() for label, x1, y1, x2, y2 in rows]
    (root / 'plain.csv').write_text('\n'.join(lines))
    (root / 'named.csv').write_text('\n'.join(['image;x1;y1;x2;y2;label', *lines]))
    plain, named = (CocoDetection(f'{name}.csv', 'images', root=root) for name in ('plain', 'named'))
    assert len(plain) == len(named) == 2
    assert plain[0].target.boxes.tolist() == named[0].target.boxes.tolist() == [[8, 10, 40, 30], [0, 0, 80, 40]]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('filename,class\na.png,cat', 'x1, y1, x2, y2 missing'),
        ('a.png,30,10,8,30,cat', 'line 1: no class, or no corners'),
        ('a.png,8,x,40,30,cat', 'not known'),
        ('filename,class,xmin,ymin,xmax,ymax\na.png,,,,,', 'no box in the file'),
    ],
)
def test_csv_files_that_cannot_be_used(root: Path, text: str, message: str):
    (root / 'boxes.csv').write_text(text)
    with pytest.raises(DataError, match=message):
        CocoDetection('boxes.csv', 'images', root=root)


def test_real_voc_files(shared: Path):
    data = CocoDetection('Annotations', 'JPEGImages', root=shared / 'raccoon_voc', split='val', evaluation=True)
    assert len(data) == 40 and data.metainfo['classes']['labels'] == ['raccoon']
    for sample in (data[0], data[17]):
        height, width = sample.meta.size
        boxes = sample.target.boxes
        assert len(boxes) and (boxes >= 0).all() and (boxes <= boxes.new_tensor([width, height] * 2)).all()


def test_check_data_reads_every_format_and_lists_all_labels_that_cannot_be_used(root: Path, capsys):
    from vitdense.tools import check_data

    write_yolo(root)
    assert check_data.main([str(root)]) == 0
    with open(root / 'labels' / 'a.txt', 'a') as file:
        file.write('7 0.5 0.5 0.2 0.2\n0 0.5\n')
    assert check_data.main([str(root / 'data.yaml')]) == check_data.WRONG
    printed = capsys.readouterr().out
    assert 'labels/a.txt:3: class 7 is none of 0 ... 1' in printed and 'labels/a.txt:4: 1 numbers' in printed
    write_voc(root)
    assert check_data.main([str(root / 'Annotations'), str(root / 'images')]) == 0
    write_csv(root)
    assert check_data.main([str(root / 'boxes.csv'), str(root / 'images')]) == 0


@pytest.mark.parametrize('names', ['{0: cat, x: dog}', '{1: cat, a: b}', '{null: cat}', '3'])
def test_names_of_yolo_that_are_no_classes_are_refused(root: Path, names: str):
    write_yolo(root, names=names)
    with pytest.raises(DataError, match='names are no list'):
        CocoDetection('data.yaml', '', root=root, split='val')


def test_lists_that_are_no_text_are_refused(root: Path):
    write_voc(root)
    write_yolo(root)
    (root / 'ImageSets' / 'Main').mkdir(parents=True)
    (root / 'ImageSets' / 'Main' / 'train.txt').write_bytes(b'a\n\xff\n')
    with pytest.raises(DataError, match='cannot read .*train.txt'):
        CocoDetection('Annotations', 'images', root=root, split='train')
    (root / 'val.txt').write_bytes(b'images/a.png\n\xff\n')
    (root / 'data.yaml').write_text('names: [cat, dog]\nval: val.txt\n')
    with pytest.raises(DataError, match='cannot read .*val.txt'):
        CocoDetection('data.yaml', '', root=root, split='val')
    (root / 'data.yaml').write_text(f'names: [cat, dog]\nval: {"x" * 5000}\n')
    with pytest.raises(DataError, match='does not exist'):
        CocoDetection('data.yaml', '', root=root, split='val')


def test_a_path_of_yolo_that_does_not_exist_is_said(root: Path, caplog: pytest.LogCaptureFixture):
    write_yolo(root)
    description = root / 'data.yaml'
    description.write_text(f'path: ../elsewhere\n{description.read_text()}')
    assert len(CocoDetection('data.yaml', '', root=root, split='val'))
    assert '../elsewhere, does not exist' in caplog.text
