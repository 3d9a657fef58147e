"""Images without labels: every one below a folder, once."""

import numpy as np
import pytest
from PIL import Image

from vitdense.data.collate import collate
from vitdense.data.files.images import UnreadableImage
from vitdense.data.transforms.common import ResizeTo
from vitdense.data.unlabelled import ImageDataset
from vitdense.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in ('b.png', 'a.jpg', 'deep/er/a.webp', 'deep/a.png', 'deep/a.jpg', '.hidden/c.png'):
        path = tmp_path / 'all' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(path)
    (tmp_path / 'all' / 'notes.txt').write_text('no image')
    return tmp_path


def test_every_image_below_the_folder_whatever_its_name(root):
    data = ImageDataset('all', root=root)
    assert [data[row].meta.image_id for row in range(len(data))] == [
        'a.jpg',
        'b.png',
        'deep/a.jpg',
        'deep/a.png',
        'deep/er/a.webp',
    ]
    assert data.metainfo == {'classes': {}} and data.name == 'all'
    sample = data[0]
    assert sample.img.shape == (3, 20, 30) and all(field is None for field in sample.target)
    assert sample.meta.orig_size == sample.meta.size == (20, 30)


def test_transforms_change_the_size_and_batches_collate(root):
    data = ImageDataset('all', root=root, transforms=[dict(type=ResizeTo, size=16)])
    assert data[1].meta.size == (16, 16) and data[1].meta.orig_size == (20, 30)
    assert collate([data[0], data[1]]).imgs.shape == (2, 3, 16, 16)


def test_wrong_folders_and_images_are_errors(root):
    with pytest.raises(DataError, match='no folder of images'):
        ImageDataset('nowhere', root=root)
    (root / 'all' / 'b.png').write_bytes(b'')
    with pytest.raises(UnreadableImage, match='b.png'):
        ImageDataset('all', root=root)[1]
