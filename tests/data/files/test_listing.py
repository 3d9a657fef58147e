"""Which files of a folder are taken, which are left out, and where links may lead."""

import logging
import os
import unicodedata

import pytest
from PIL import Image

from vitdense.data.classification import ClassificationDataset
from vitdense.data.files.listing import count_endings, find_files, images_among, walk
from vitdense.data.files.pairs import list_files
from vitdense.data.files.similar_names import near_name
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.unlabelled import ImageDataset
from vitdense.errors import DataError


@pytest.fixture
def put(tmp_path):
    """Write images (or, where `data` is given, bytes) below the folder of the test; return that."""

    def write(*names: str, data: bytes | None = None):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                Image.new('RGB' if 'mask' not in name else 'L', (4, 3)).save(path, 'PNG')
            else:
                path.write_bytes(data)
        return tmp_path

    return write


def test_every_file_is_listed_once_whatever_links_there_are(put):
    root = put('r/b/x.png', 'r/a.png', 'r/.hidden/y.png', 'r/c.jpg/z.png')
    (root / 'r/loop').symlink_to(root / 'r')
    (root / 'r/b/up').symlink_to('..')
    (root / 'r/d').symlink_to('b')
    (root / 'r/e.png').symlink_to('a.png')
    (root / 'r/gone.png').symlink_to('nothing.png')
    walked = walk(root / 'r')
    assert walked.files == ['a.png', 'b/x.png', 'c.jpg/z.png', 'e.png', 'gone.png']
    assert sorted(walked.repeated) == ['b/up', 'd', 'loop'] and walked.outside == {}
    (root / 'link').symlink_to('r')
    assert walk(root / 'link') == walked  # the folder itself may be a link


def test_a_link_that_leads_out_is_refused_before_anything_is_read(put, monkeypatch):
    root = put('r/a/x.png', 'r/a/y.png', 'away/z.png', 'm/a/x_mask.png')
    (root / 'r/a/link.png').symlink_to(root / 'away/z.png')
    makers = [
        lambda **options: ImageDataset('r', root=root, **options),
        lambda **options: ClassificationDataset('r', root=root, **options),
        lambda **options: SegmentationDataset('r', root=root, **options),
    ]
    for make in makers:
        with pytest.raises(DataError, match='leads out of the folder of images: it is a link to .*z.png'):
            make()
        assert len(make(follow_links=True)) == 3
    (root / 'r/a/link.png').unlink()
    (root / 'r/more').symlink_to(root / 'away')
    for make in makers:
        with pytest.raises(DataError, match="'more' leads out"):
            make()
        assert len(make(follow_links=True)) == 3
    (root / 'away/back').symlink_to(root)  # a loop beyond the folder
    assert len(makers[0](follow_links=True)) == 4  # with the mask below the root


def test_a_folder_that_cannot_be_listed_is_an_error(put, monkeypatch):
    root = put('r/a/x.png')
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('a'):
            raise PermissionError(13, 'Permission denied')
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(DataError, match='cannot be listed'):
        walk(root / 'r')


@pytest.mark.parametrize(
    'name', ['a.jfif', 'a.JPG.jfif', 'a.jpe', 'a.PGM', 'a.ppm', 'a.jp2', 'a.apng', 'a.mpo', 'a.Tif']
)
def test_all_endings_of_the_formats_count(put, name):
    root = put(f'r/{name}')
    assert find_files(root / 'r').files == [name]


def test_what_is_left_out_is_counted_and_what_looks_like_an_image_is_named(put, caplog):
    caplog.set_level(logging.INFO, 'vitdense')
    root = put('r/a.png', 'r/b.img', 'r/c', 'r/d.img', 'r/.png')
    put('r/notes.txt', 'r/clip.mp4', data=b'words')
    data = ImageDataset('r', root=root, name='mine')
    assert len(data) == 1
    assert f'mine: 1 images in {root}/r; left out: 2 .img, 1 .mp4, 1 .txt and 1 without ending' in caplog.text
    assert '2 .img and 1 without ending' in caplog.text and 'begin like images but are left out' in caplog.text


def test_every_data_set_logs_its_number_of_images(put, caplog):
    caplog.set_level(logging.INFO, 'vitdense')
    root = put('r/a/x.png', 'r/b/y.png', 'm/a/x_mask.png', 'm/b/y_mask.png')
    (root / 'list.txt').write_text('a/x.png\tone\nb/y.png\ttwo\n')
    for make, words in (
        (lambda: ImageDataset('r', root=root), 'r: 2 images in'),
        (lambda: ClassificationDataset('r', root=root), 'r: 2 images in'),
        (lambda: ClassificationDataset('r', root=root, split='list.txt'), 'r: 2 images listed in'),
        (lambda: SegmentationDataset('r', 'm', root=root, classes=['a', 'b']), 'r: 2 label maps in'),
        (lambda: SegmentationDataset('r', root=root), 'r: 2 images in'),
    ):
        caplog.clear()
        make()
        assert words in caplog.text


def test_the_error_for_a_folder_without_images_lists_its_files(put):
    root = put('r/a.mp4', 'r/b.mp4', data=b'no image')
    with pytest.raises(DataError, match='no images in') as caught:
        find_files(root / 'r')
    assert 'there are 2 .mp4' in caught.value.why
    (root / 'e').mkdir()
    with pytest.raises(DataError, match='no images in'):
        find_files(root / 'e')


def test_a_class_folder_without_images_is_no_lost_class(put, caplog):
    root = put('r/bolt/1.png', 'r/screw/1.png')
    put('r/nut/1.heic', 'r/nut/2.heic', data=b'no image')
    with pytest.raises(DataError, match="1 of 3 class folders, such as 'nut'") as caught:
        ClassificationDataset('r', root=root)
    assert '2 .heic' in caught.value.why and 'nut/1.heic' in caught.value.why
    assert len(ClassificationDataset('r', root=root, classes=['bolt', 'screw'])) == 2  # it is no class, then
    with pytest.raises(DataError, match='nut'):
        ClassificationDataset('r', root=root, classes=['bolt', 'screw', 'nut'])
    for path in (root / 'r/nut').iterdir():
        path.unlink()
    assert ClassificationDataset('r', root=root).metainfo['classes']['image_label'] == ['bolt', 'screw']
    assert 'no images in 1 of 3 folders, such as nut' in caplog.text


def test_images_of_one_class_are_an_error_in_training(put):
    root = put('r/train/a/1.png', 'r/train/b/1.png')
    with pytest.raises(DataError, match="all 2 images are of one class, 'train'") as caught:
        ClassificationDataset('r', root=root).check(training=True)
    assert 'further down' in caught.value.why
    assert ClassificationDataset('r', root=root).check() == 0
    assert ClassificationDataset('r/train', root=root).check(training=True) == 0
    (root / 'list.txt').write_text('train/a/1.png\ta, b\ntrain/b/1.png\ta, b\n')
    assert ClassificationDataset('r', root=root, split='list.txt', multi_label=True).check(training=True) == 2


def test_endings_are_counted_in_words():
    assert count_endings(['a.TXT', 'b.txt', 'c', 'd.x']) == '2 .txt, 1 .x and 1 without ending'
    assert count_endings([f'a.{k}' for k in range(9)]) == '1 .0, 1 .1, 1 .2, 1 .3, 1 .4, 1 .5 and 3 others'
    assert count_endings(['a']) == '1 without ending'


def test_only_a_few_files_of_an_ending_are_opened(put, monkeypatch):
    root = put(*[f'r/{k}.bin' for k in range(30)], data=b'words')
    recorded = []
    monkeypatch.setattr('vitdense.data.files.listing.begins_like_image', lambda path: recorded.append(path))
    assert images_among(root / 'r', [f'{k}.bin' for k in range(30)]) == [] and len(recorded) == 8


@pytest.mark.parametrize(
    ('name', 'there'),
    [
        ('a/Foto.JPG', 'a/foto.jpg'),
        ('a/cafe%20one.jpg', 'a/cafe one.jpg'),
        (unicodedata.normalize('NFD', 'café.jpg'), unicodedata.normalize('NFC', 'café.jpg')),
        ('a/b.jpg', 'a/b.png'),
    ],
)
def test_names_in_another_spelling_are_found(name, there):
    assert near_name(name, ['x.png', there]) == there
    assert near_name(name, ['x.png', 'y/b.gif']) is None


def test_two_files_of_one_key_are_an_error(put):
    root = put('r/a.png', 'r/a.jfif')
    with pytest.raises(DataError, match='two images with one name: a.jfif and a.png'):
        list_files(root / 'r', ('.png', '.jfif'), what='images')
