"""Label maps that belong to images: names that differ, one folder for both, and hints where none is found."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from vitdense.data.segmentation import SegmentationDataset
from vitdense.errors import DataError


@pytest.fixture
def pairs(tmp_path):
    """Write images and label maps of two classes, named by their paths; make the data set of two folders."""

    def make(images, labels, folders=('i', 'l'), **options):
        for names, array in ((images, np.full((4, 6, 3), 90)), (labels, np.resize([0, 1], (4, 6)))):
            for name in names:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(tmp_path / name)
        return SegmentationDataset(*folders, root=tmp_path, classes=['a', 'b'], **options)

    return make


def names_of(data: SegmentationDataset) -> list[tuple[str, str]]:
    return list(zip(data._files.all(), data._label_files.all(), strict=True))


def test_masks_beside_images_are_no_images(pairs):
    files = [f'd/{k}.png' for k in range(3)], [f'd/{k}_mask.png' for k in range(3)]
    for options in ({'label_suffix': '_mask.png'}, {'image_suffix': '.png', 'label_suffix': '_mask.png'}):
        data = pairs(*files, folders=('d', 'd'), **options)
        assert names_of(data) == [(f'{k}.png', f'{k}_mask.png') for k in range(3)] and data.check() == 3
    with pytest.raises(DataError, match='lie in one folder, and nothing says which 0.png is') as caught:
        pairs(*files, folders=('d', 'd'))
    assert "label_suffix='_mask.png'" in caught.value.fix
    with pytest.raises(DataError, match='one folder') as caught:
        pairs(*files, folders=('d', 'd'), image_suffix='.png')
    assert "label_suffix='_mask.png'" in caught.value.fix


def test_images_and_masks_of_one_name_are_distinguished_by_suffix(pairs):
    files = ['d/a.jpg', 'd/b.jpg'], ['d/a.png', 'd/b.png']
    for options in (
        {'label_suffix': '.png'},
        {'image_suffix': '.jpg'},
        {'image_suffix': '.jpg', 'label_suffix': '.png'},
    ):
        assert names_of(pairs(*files, folders=('d', 'd'), **options)) == [('a.jpg', 'a.png'), ('b.jpg', 'b.png')]
    with pytest.raises(DataError, match='a.jpg and a.png') as caught:
        pairs(*files, folders=('d', 'd'))
    assert "image_suffix='.jpg', label_suffix='.png'" in caught.value.fix


def test_a_folder_within_the_other_holds_its_own_kind_only(pairs, caplog):
    assert names_of(pairs(['d/a.png'], ['d/masks/a.png'], folders=('d', 'd/masks'))) == [('a.png', 'a.png')]
    assert names_of(pairs(['e/photos/a.png'], ['e/a.png'], folders=('e/photos', 'e'))) == [('a.png', 'a.png')]
    assert names_of(pairs(['f/photos/a.jpg'], ['f/a.png'], folders=('f/photos', 'f'))) == [('a.jpg', 'a.png')]
    assert 'left out' not in caplog.text


@pytest.mark.parametrize(
    ('images', 'labels'),
    [
        (['i/a.jpg', 'i/b.png'], ['l/a.jpg.png', 'l/b.png.png']),  # exports of labelling tools
        (['i/a.jpg', 'i/b.png'], ['l/a.png', 'l/b.png.png']),
        (['i/img_0.jpg', 'i/img_1.jpg'], ['l/mask_0.png', 'l/mask_1.png']),
        (['i/x/img_0_rgb.jpg', 'i/y/img_1_rgb.jpg'], ['l/x/gt-0.png', 'l/y/gt-1.png']),
        (['i/0_leftImg8bit.png', 'i/1_leftImg8bit.png'], ['l/0_gtFine_labelIds.png', 'l/1_gtFine_labelIds.png']),
    ],
)
def test_names_are_matched_by_what_they_do_not_share(pairs, images, labels):
    data = pairs(images, labels)
    assert names_of(data) == [(image[2:], label[2:]) for image, label in zip(images, labels, strict=True)]


def test_label_maps_in_jpeg_files_are_no_label_maps(pairs, caplog):
    with pytest.raises(DataError, match='no label maps in') as caught:
        pairs(['i/a.jpg'], ['l/a.jpg'])
    assert 'there are 1 .jpg' in caught.value.why and 'JPEG changes their numbers' in caught.value.fix
    with pytest.raises(DataError, match='1 of 2 images have no label, such as a.jpg'):
        pairs(['i/b.jpg'], ['l/b.png'])
    assert '1 .jpg in' in caplog.text and 'export them anew as PNG' in caplog.text


def test_unused_label_maps_are_counted(pairs, caplog):
    caplog.set_level('INFO', 'vitdense')
    pairs(['i/a.jpg'], ['l/a.png', 'l/b.png', 'l/c.png'])
    assert 'i: 2 label maps without an image are not used' in caplog.text


@pytest.mark.parametrize(
    ('image', 'label', 'words'),
    [
        ('i/Foto.jpg', 'l/foto.png', 'l/foto.png'[2:]),
        ('i/a b.jpg', 'l/a%20b.png', 'a%20b.png'),
        (f'i/{unicodedata.normalize("NFD", "é")}.jpg', f'l/{unicodedata.normalize("NFC", "é")}.png', 'another way'),
        ('i/train/a.jpg', 'l/a.png', 'in another folder'),
        ('i/a.jpg', 'l/train/a.png', 'in another folder'),
    ],
)
def test_a_label_that_is_nearly_there_is_named(pairs, image, label, words):
    with pytest.raises(DataError, match='1 of 2 images have no label') as caught:
        pairs([image, 'i/ok.jpg'], [label, 'l/ok.png'])
    assert words in caught.value.why


def test_a_line_that_is_nearly_a_image_is_explained(pairs, tmp_path):
    for line, words in (('i/a.jpg', 'is there: give the folder'), ('A.jpg', 'a.jpg is there')):
        (tmp_path / 'split.txt').write_text(line)
        with pytest.raises(DataError, match='in the split but not among') as caught:
            pairs(['i/a.jpg'], ['l/a.png'], split='split.txt')
        assert words in caught.value.why


def test_a_list_may_stand_beside_links_that_it_does_not_choose(pairs, tmp_path):
    Image.new('RGB', (6, 4)).save(tmp_path / 'away.jpg')
    pairs(['i/a.jpg'], ['l/a.png', 'l/link.png'])
    (tmp_path / 'i/link.jpg').symlink_to(tmp_path / 'away.jpg')
    (tmp_path / 'split.txt').write_text('a')
    assert len(pairs([], [], split='split.txt')) == 1
    (tmp_path / 'split.txt').write_text('link')
    with pytest.raises(DataError, match='leads out'):
        pairs([], [], split='split.txt')
    assert len(pairs([], [], split='split.txt', follow_links=True)) == 1
