"""Image folders and lists of images: classes, names, labels, and what is wrong with them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from vitdense.data.classification import ClassificationDataset
from vitdense.data.collate import collate
from vitdense.data.files.images import UnreadableImage
from vitdense.data.sampling import SeededDataset
from vitdense.data.transforms.evaluation_crop import EvaluationCrop
from vitdense.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path) -> Path:
    for number, name in enumerate(['cat/b.png', 'cat/a.JPG', 'ant/more/c.jpg', 'bee/d.webp', 'bee/notes.txt']):
        path = tmp_path / 'train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.txt':
            path.write_text('no image')
            continue
        Image.fromarray(np.full((20 + number, 30, 3), 40 * number, np.uint8)).save(path)
    return tmp_path


def names_of(data: ClassificationDataset) -> list[str]:
    return data.metainfo['classes']['image_label']


def labels_of(data: ClassificationDataset) -> list[int]:
    return [int(data[row].target.image_label) for row in range(len(data))]


def test_folders_are_the_classes_as_torchvision_sorts_them(root):
    data, theirs = ClassificationDataset('train', root=root), ImageFolder(root / 'train')
    assert names_of(data) == theirs.classes == ['ant', 'bee', 'cat']
    assert sorted(labels_of(data)) == sorted(theirs.targets)
    assert [data[row].meta.image_id for row in range(4)] == ['ant/more/c.jpg', 'bee/d.webp', 'cat/a.JPG', 'cat/b.png']
    sample = data[0]
    assert sample.img.shape == (3, 22, 30) and sample.meta.size == sample.meta.orig_size == (22, 30)
    assert sample.meta.dataset == 'train' and Path(sample.meta.path).is_file()
    assert sample.target.image_label.dtype == torch.int64 and sample.target.image_label.ndim == 0
    assert [name for name, value in sample.target._asdict().items() if value is not None] == ['image_label']


def test_given_classes_keep_their_order_and_may_lack_images(root, caplog):
    with caplog.at_level('INFO', 'vitdense'):
        data = ClassificationDataset('train', root=root, classes=['dog', 'cat', 'bee', 'ant'])
    assert labels_of(data) == [3, 2, 1, 1]
    assert any('no images of 1 of the 4 classes' in line and 'dog' in line for line in caplog.messages)
    (root / 'names.txt').write_text('cat\nbee\nant\n')
    assert labels_of(ClassificationDataset('train', root=root, classes='names.txt')) == [2, 1, 0, 0]


def test_a_folder_of_an_unknown_class_is_an_error(root):
    with pytest.raises(DataError, match="'ant' is no class; did you mean 'ants'"):
        ClassificationDataset('train', root=root, classes=['ants', 'bee', 'cat'])


def test_a_list_names_images_and_classes(root):
    (root / 'list.txt').write_text('cat/b.png\tbee\nant/more/c.jpg 0\n\ncat/a.JPG\n')
    data = ClassificationDataset('train', root=root, split='list.txt', classes=['ant', 'bee', 'cat'])
    assert [data[row].meta.image_id for row in range(3)] == ['cat/b.png', 'ant/more/c.jpg', 'cat/a.JPG']
    assert labels_of(data) == [1, 0, 2]
    assert data.check() == 3
    (root / 'list.txt').write_text('cat/b.png 10\nant/more/c.jpg 2\n')
    assert names_of(ClassificationDataset('train', root=root, split='list.txt')) == ['2', '10']


def test_a_list_may_name_several_classes(root):
    (root / 'list.txt').write_text('cat/b.png\tant, cat\nbee/d.webp\tbee\ncat/a.JPG\tcat\n')
    data = ClassificationDataset('train', root=root, split='list.txt', multi_label=True)
    assert names_of(data) == ['ant', 'bee', 'cat']
    labels = torch.stack([data[row].target.image_label for row in range(3)])
    assert labels.dtype == torch.float32 and labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ('lines', 'message'),
    [('cat/b.png\tcow\n', "'cow' is no class"), ('b.png\n', 'names no class'), ('cat/b.png 7\n', "'7' is no class")],
)
def test_a_wrong_line_is_named(root, lines, message):
    (root / 'list.txt').write_text(lines)
    with pytest.raises(DataError, match=message) as caught:
        ClassificationDataset('train', root=root, split='list.txt', classes=['ant', 'bee', 'cat'])
    assert 'list.txt' in caught.value.where


def test_a_list_that_leads_elsewhere_or_nowhere_is_refused(root):
    (root / 'list.txt').write_text('cat/b.png\n../secret/x.png ant\n')
    data = ClassificationDataset('train', root=root, split='list.txt', classes=['ant', 'cat'])
    with pytest.raises(DataError, match='leads out of the data folder'):
        data[1]
    (root / 'list.txt').write_text('cat/b.png\ncat/gone.png\n')
    data = ClassificationDataset('train', root=root, split='list.txt')
    with pytest.raises(DataError, match='1 of 2 images of the list are not there, such as cat/gone.png'):
        data.check()
    with pytest.raises(UnreadableImage):
        data[1]
    assert SeededDataset(data)[1].meta.image_id == 'cat/b.png'  # training replaces it


def test_empty_folders_are_logged(root):
    with pytest.raises(DataError, match='no folder of images'):
        ClassificationDataset('val', root=root)
    (root / 'val' / 'cat').mkdir(parents=True)
    with pytest.raises(DataError, match='no images in'):
        ClassificationDataset('val', root=root)
    Image.new('RGB', (4, 4)).save(root / 'val' / 'loose.png')
    with pytest.raises(DataError, match='1 images lie in no class folder, such as loose.png'):
        ClassificationDataset('val', root=root)


def wordnet_folders(root: Path) -> Path:
    for wordnet_id in ('n03000684', 'n01440764'):
        (root / 'val' / wordnet_id).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(root / 'val' / wordnet_id / 'x.png')
    return root


def test_imagenet_numbers_are_those_of_every_classifier(tmp_path):
    data = ClassificationDataset('val', root=wordnet_folders(tmp_path), classes='imagenet1k')
    names = names_of(data)
    assert len(names) == len(set(names)) == 1000
    assert [names[index] for index in (0, 491, 999)] == ['tench', 'chain saw', 'toilet tissue']
    assert names[134] == 'crane (n02012849)' and names[517] == 'crane (n03126707)'
    assert labels_of(data) == [0, 491]


def test_a_wordnet_file_orders_the_classes_or_only_names_them(tmp_path):
    root = wordnet_folders(tmp_path)
    (root / 'words.txt').write_text('n03000684 chain saw, chainsaw\nn00000001 thing\nn01440764\ttench, Tinca tinca\n')
    data = ClassificationDataset('val', root=root, classes='words.txt')
    assert names_of(data) == ['chain saw', 'thing', 'tench'] and labels_of(data) == [2, 0]
    data = ClassificationDataset('val', root=root, wordnet='words.txt')
    assert names_of(data) == ['tench', 'chain saw'] and labels_of(data) == [0, 1]
    assert names_of(ClassificationDataset('val', root=root, wordnet='imagenet1k')) == ['tench', 'chain saw']
    (root / 'plain.txt').write_text('tench\nsaw\n')
    with pytest.raises(ConfigError, match='it is no WordNet file'):
        ClassificationDataset('val', root=root, wordnet='plain.txt')


def test_torchvision_augmentation_stands_in_the_pipeline_and_collates(root):
    transforms = [
        dict(type=v2.RandomResizedCrop, size=16, scale=(0.08, 1.0), interpolation=3),
        dict(type=v2.RandomHorizontalFlip),
        dict(type=v2.RandAugment, num_ops=2, magnitude=9, interpolation=2),
        dict(type=v2.AutoAugment),
        dict(type=v2.RandomErasing, p=1.0),
    ]
    data = SeededDataset(ClassificationDataset('train', root=root, transforms=transforms))
    batch = collate([data[row] for row in range(4)])
    assert batch.imgs.shape == (4, 3, 16, 16) and batch.imgs.dtype == torch.uint8
    assert [meta.size for meta in batch.metas] == [(16, 16)] * 4
    assert torch.equal(batch.imgs[2], data[2].img)
    assert type(batch.targets[0].image_label) is torch.Tensor


def test_real_folders(shared):
    data = ClassificationDataset(
        'val',
        root=shared / 'imagenette160',
        wordnet='imagenet1k',
        transforms=[EvaluationCrop(size=128, crop_pct=0.9)],
    )
    assert len(data) == 300 and data[0].img.shape == (3, 128, 128)
    assert names_of(data)[0] == 'tench' and names_of(data)[-1] == 'parachute'


def test_folders_whose_names_are_not_utf8_are_classes_with_printable_names(root):
    for name in (b'caf\xe9', b'th\xe9'):
        folder = os.path.join(os.fsencode(root), b'other', name)
        os.makedirs(folder)
        Image.new('RGB', (4, 4)).save(os.path.join(folder, b'\xff.png'))
    data = ClassificationDataset('other', root=root)
    assert names_of(data) == ['caf\\xe9', 'th\\xe9'] and labels_of(data) == [0, 1]
    assert data[0].img.shape == (3, 4, 4)


@pytest.mark.parametrize('option', ['wordnet', 'classes'])
@pytest.mark.parametrize('content', [b'n01 caf\xe9\n', None])
def test_lists_of_names_are_utf8_text_in_regular_files(root, option, content):
    if content is None:
        os.mkfifo(root / 'names.txt')
    else:
        (root / 'names.txt').write_bytes(content)
    with pytest.raises(ConfigError, match='names.txt'):
        ClassificationDataset('train', root=root, **{option: 'names.txt'})
    with pytest.raises(DataError, match='cannot read .*names.txt'):
        ClassificationDataset('train', root=root, split='names.txt')


def test_names_too_long_for_a_file_are_missing(root):
    (root / 'long.txt').write_text(f'{"x" * 5000}.jpg cat\n')
    with pytest.raises(DataError, match='1 of 1 images of the list are not there'):
        ClassificationDataset('train', root=root, split='long.txt', classes=['cat']).check()
