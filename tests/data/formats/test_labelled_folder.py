"""A folder of labelled images is recognised by what lies in it, with its splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.data.files.splits import split_of
from vitdense.data.formats.labelled_folder import parts_to_check, read_folder
from vitdense.errors import DataError

ANNOTATION = '<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'  # noqa: E501
CSV = 'filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,1,9,9\n'


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def coco(path: Path, name: str) -> None:
    record = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 8, 8], 'area': 64, 'iscrowd': 0}
    content = {'images': [{'id': 1, 'file_name': name, 'height': 16, 'width': 16}], 'annotations': [record]}
    text(path, json.dumps(content | {'categories': [{'id': 1, 'name': 'cat'}]}))


def roboflow_coco(root: Path) -> None:
    for split in ('train', 'valid', 'test'):
        image(root / split / 'a.jpg')
        coco(root / split / '_annotations.coco.json', 'a.jpg')


def coco_2017(root: Path) -> None:
    for split in ('train2017', 'val2017'):
        image(root / split / 'a.jpg')
        coco(root / 'annotations' / f'instances_{split}.json', 'a.jpg')


def yolo(root: Path) -> None:
    for split in ('train', 'val'):
        image(root / 'images' / split / 'a.jpg')
        text(root / 'labels' / split / 'a.txt', '0 0.5 0.5 0.5 0.5\n')
    text(root / 'data.yaml', 'names: [cat]\ntrain: images/train\nval: images/val\n')


def voc(root: Path) -> None:
    for split, name in (('train', 'a'), ('val', 'b')):
        image(root / 'JPEGImages' / f'{name}.jpg')
        text(root / 'Annotations' / f'{name}.xml', ANNOTATION)
        text(root / 'ImageSets' / 'Main' / f'{split}.txt', f'{name}\n')


def voc_in_lower_case(root: Path) -> None:
    voc(root)
    (root / 'Annotations').rename(root / 'annotations')
    (root / 'JPEGImages').rename(root / 'images')


def voc_beside_images(root: Path) -> None:
    for split in ('train', 'valid'):
        image(root / split / 'a.jpg')
        text(root / split / 'a.xml', ANNOTATION)


def csv_of_roboflow(root: Path) -> None:
    for split in ('train', 'valid'):
        image(root / split / 'a.jpg')
        text(root / split / '_annotations.csv', CSV)


def csv_files(root: Path) -> None:
    for split in ('train', 'val'):
        image(root / 'images' / 'a.jpg')
        text(root / f'{split}_labels.csv', CSV)


def masks(root: Path) -> None:
    for split in ('train', 'val'):
        image(root / 'images' / split / 'a.jpg')
        path = root / 'masks' / split / 'a.png'
        path.parent.mkdir(parents=True)
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 2).save(path)
    text(root / 'classes.txt', 'ground\nroad\n')


def class_folders(root: Path) -> None:
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            image(root / split / name / 'a.jpg')


@pytest.mark.parametrize(
    ('write', 'kind', 'splits', 'validation'),
    [
        (
            roboflow_coco,
            'Roboflow COCO',
            'train val test',
            dict(annotations='valid/_annotations.coco.json', images='valid'),
        ),
        (coco_2017, 'COCO', 'train val', dict(annotations='annotations/instances_val2017.json', images='val2017')),
        (yolo, 'YOLO', 'train val', dict(annotations='data.yaml', images='', split='val')),
        (voc, 'PASCAL VOC', 'train val', dict(annotations='Annotations', images='JPEGImages', split='val')),
        (voc_in_lower_case, 'PASCAL VOC', 'train val', dict(annotations='annotations', images='images', split='val')),
        (voc_beside_images, 'PASCAL VOC (XML beside images)', 'train val', dict(annotations='valid', images='valid')),
        (csv_of_roboflow, 'CSV of boxes', 'train val', dict(annotations='valid/_annotations.csv', images='valid')),
        (csv_files, 'CSV of boxes', 'train val', dict(annotations='val_labels.csv', images='images')),
        (masks, 'images and masks', 'train val', dict(images='images/val', labels='masks/val', classes='classes.txt')),
        (class_folders, 'class folders', 'train val', dict(folder='val')),
    ],
    ids=lambda value: value.__name__ if callable(value) else '',
)
def test_formats(tmp_path: Path, write, kind: str, splits: str, validation: dict):
    write(tmp_path)
    folder = read_folder(tmp_path)
    assert folder.format == kind
    assert list(folder.splits) == splits.split()
    assert folder.splits['val'] == validation


def test_one_csv_file_and_one_list_are_for_training(tmp_path: Path):
    image(tmp_path / 'csv' / 'images' / 'a.jpg')
    text(tmp_path / 'csv' / 'prices.csv', 'item,price\na,1\n')
    text(tmp_path / 'csv' / 'labels.csv', CSV)
    assert read_folder(tmp_path / 'csv').splits == {'train': dict(annotations='labels.csv', images='images')}
    voc(tmp_path / 'voc')
    (tmp_path / 'voc' / 'ImageSets' / 'Main' / 'train.txt').rename(
        tmp_path / 'voc' / 'ImageSets' / 'Main' / 'trainval.txt'
    )
    assert list(read_folder(tmp_path / 'voc').splits) == ['val']  # trainval has these images, too
    (tmp_path / 'voc' / 'ImageSets' / 'Main' / 'val.txt').unlink()
    assert list(read_folder(tmp_path / 'voc').splits) == ['train']


def empty(root: Path) -> None:
    root.mkdir()


def yaml_that_cannot_be_read(root: Path) -> None:
    yolo(root)
    text(root / 'data.yaml', 'names: [cat\ntrain: images/train\n')


def yaml_without_names(root: Path) -> None:
    yolo(root)
    text(root / 'data.yaml', 'nc: 1\ntrain: images/train\n')


def voc_without_images(root: Path) -> None:
    voc(root)
    (root / 'JPEGImages').rename(root / 'photos')


def nested(root: Path) -> None:
    roboflow_coco(root / 'export')
    text(root / 'export' / 'README.roboflow.txt', 'exported')


@pytest.mark.parametrize(
    ('write', 'message', 'fix'),
    [
        (empty, 'looked for COCO files', 'images and labels'),
        (yaml_that_cannot_be_read, 'data.yaml does not describe a YOLO data set', 'names'),
        (yaml_without_names, "it has no 'names'", 'names'),
        (voc_without_images, 'no folder JPEGImages', 'JPEGImages'),
        (nested, 'export/ holds train, val, test', 'give '),
    ],
    ids=lambda value: value.__name__ if callable(value) else '',
)
def test_a_wrong_layout_is_an_error_that_names_what_is_wrong(tmp_path: Path, write, message: str, fix: str):
    write(tmp_path / 'data')
    for read in (read_folder, parts_to_check):
        with pytest.raises(DataError) as caught:
            read(tmp_path / 'data')
        assert message in f'{caught.value.message} {caught.value.why}' and fix in caught.value.fix


def test_an_unknown_layout_is_one_error_that_lists_the_known_ones(tmp_path: Path):
    image(tmp_path / 'some' / 'a.jpg')
    text(tmp_path / 'some' / 'notes.md', 'nothing')
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path / 'some')
    assert 'COCO' in f'{caught.value.why} {caught.value.fix} {caught.value.message}'
    with pytest.raises(DataError, match='no folder of data') as caught:
        read_folder(tmp_path / 'some_')
    assert "did you mean 'some'" in caught.value.why


def test_masks_without_names_of_classes_are_an_error(tmp_path: Path):
    masks(tmp_path)
    (tmp_path / 'classes.txt').unlink()
    with pytest.raises(DataError, match='nothing names the classes'):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ('name', 'split'),
    [('instances_train2017', 'train'), ('valid', 'val'), ('my-test', 'test'), ('training', 'train'), ('trains', None)],
)
def test_names_of_splits(name: str, split: str | None):
    assert split_of(name) == split
