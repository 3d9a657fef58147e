"""Folders of images and labels: every layout loads, every mistake is named."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from vitdense.data.class_names import NAMES, distinct_colors, read_classes, read_palette, voc_colors
from vitdense.data.collate import collate
from vitdense.data.segmentation import SegmentationDataset
from vitdense.data.transforms.common import RandomCrop, ResizeShortSide
from vitdense.errors import ConfigError, DataError
from vitdense.types import IGNORE


@pytest.fixture
def folders(tmp_path):
    """Write images and labels {name: array}; return the two folders."""

    def write(labels: dict[str, np.ndarray], *, image_ending='.jpg', label_ending='.png', palette=None):
        for name, array in labels.items():
            image = tmp_path / 'images' / (name + image_ending)
            label = tmp_path / 'labels' / (name + label_ending)
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*array.shape[:2], 3), 90, np.uint8)).save(image)
            stored = Image.fromarray(array)
            if palette:
                stored.putpalette(palette)
            stored.save(label)
        return tmp_path / 'images', tmp_path / 'labels'

    return write


def labels_of(*numbers: int) -> np.ndarray:
    return np.resize(np.array(numbers, np.uint8), (8, 12))


def semantic(dataset, index=0) -> torch.Tensor:
    return dataset[index].target.semantic


def test_ade20k_loads_and_zero_is_ignored(shared):
    tree = shared / 'ade20k_sample'
    where = 'ADEChallengeData2016/{}/validation'
    dataset = SegmentationDataset(
        tree / where.format('images'),
        tree / where.format('annotations'),
        classes=tree / 'objectInfo150.csv',
        reduce_zero_label=True,
    )
    names = dataset.metainfo['classes']['semantic']
    assert len(dataset) == 3 and len(names) == 150 and names[:3] == ['wall', 'building', 'sky']
    for index in range(3):
        sample = dataset[index]
        raw = np.asarray(Image.open(tree / where.format('annotations') / f'{sample.meta.image_id}.png'))
        assert (sample.target.semantic.numpy() == np.where(raw == 0, IGNORE, raw.astype(int) - 1)).all()
        assert sample.meta.orig_size == sample.meta.size == raw.shape
    assert '0, 255' in dataset.metainfo['ignore']['semantic']


def test_camvid_loads_with_eleven_ignored(shared):
    tree = shared / 'camvid'
    dataset = SegmentationDataset(
        tree / 'images/validation', tree / 'annotations/validation', classes=tree / 'classes.txt', ignore=11
    )
    assert len(dataset) == 101 and dataset.check(limit=5) == 5
    sample = dataset[0]
    assert sample.img.shape == (3, 360, 480) and isinstance(sample.img, tv_tensors.Image)
    assert set(sample.target.semantic.unique().tolist()) <= {*range(11), IGNORE}
    assert 11 not in sample.target.semantic and (sample.target.semantic == IGNORE).any()


def test_coco_ids_with_gaps_become_class_names(shared, tmp_path):
    tree = shared / 'coco_mini480'
    labels = sorted((tree / 'semantic/val2017').glob('*.png'))
    split = tmp_path / 'labelled.txt'  # not every image of this tree has labels
    split.write_text('\n'.join(path.stem for path in labels))
    dataset = SegmentationDataset(
        tree / 'val2017', labels[0].parent, classes=tree / 'semantic_classes.yaml', ignore=0, split=split
    )
    names = dataset.metainfo['classes']['semantic']
    assert names[0] == 'person' and 'unlabeled' not in names
    assert len(dataset) == len(labels) and dataset.check(limit=20) == 20
    raw = np.asarray(Image.open(labels[0]))
    assert ((raw == 0) == (semantic(dataset).numpy() == IGNORE)).all()


def test_cityscapes_names_match_by_their_endings(folders, tmp_path):
    names = {'aachen/aachen_000000_000019': labels_of(0, 18, 255), 'bochum/bochum_000000_000313': labels_of(1)}
    endings = {'image_ending': '_leftImg8bit.png', 'label_ending': '_gtFine_labelTrainIds.png'}
    images, labels = folders(names, **endings)
    classes = [f'class {index}' for index in range(19)]
    actual = SegmentationDataset(images, labels, classes=classes)  # by itself
    assert [actual[index].meta.image_id for index in range(2)] == list(names)
    Image.new('L', (12, 8), 33).save(labels / 'aachen/aachen_000000_000019_gtFine_labelIds.png')
    suffixes = {'image_suffix': endings['image_ending'], 'label_suffix': endings['label_ending']}
    dataset = SegmentationDataset(images, labels, classes=classes, **suffixes)
    assert semantic(dataset).unique().tolist() == [0, 18, 255]
    with pytest.raises(DataError, match='have no label'):
        SegmentationDataset(images, labels, classes=classes)  # two label files per image: the ending must be given


def test_cityscapes_label_ids_through_a_table(folders):
    images, labels = folders({'a': labels_of(7, 8, 11, 0)})
    table = {0: 255, 7: 0, 8: 1, 11: None}
    dataset = SegmentationDataset(images, labels, classes=['road', 'sidewalk'], label_map=table)
    assert semantic(dataset)[0, :4].tolist() == [0, 1, 255, 255]


def test_voc_palette_gives_indices(folders):
    colors = [channel for index in range(256) for channel in (index * 67 % 256, index * 31 % 256, index)]
    images, labels = folders({'2007_000032': labels_of(0, 1, 15, 255)}, palette=colors)
    dataset = SegmentationDataset(images, labels, classes=[f'{index}' for index in range(21)])
    assert semantic(dataset)[0, :4].tolist() == [0, 1, 15, 255]


def test_coloured_labels_through_the_palette(folders):
    palette = [[128, 128, 128], [128, 0, 0], [192, 192, 128]]
    image = np.resize(np.array([*palette, [0, 0, 0]], np.uint8), (8, 12, 3))
    images, labels = folders({'a': image})
    options = {'classes': ['sky', 'building', 'pole'], 'palette': palette, 'colored_labels': True}
    dataset = SegmentationDataset(images, labels, ignore=[[0, 0, 0]], **options)
    assert semantic(dataset)[0, :4].tolist() == [0, 1, 2, 255]
    merged = SegmentationDataset(
        images, labels, ignore=[[0, 0, 0]], **options, label_map={(128, 128, 128): 0, '128 0 0': 1, (192, 192, 128): 1}
    )
    assert semantic(merged)[0, :4].tolist() == [0, 1, 1, 255]
    with pytest.raises(DataError, match=r'\(0, 0, 0\)'):
        SegmentationDataset(images, labels, **options)[0]


def test_wide_labels_and_classes_by_number(folders):
    images, labels = folders({'a': np.resize(np.array([0, 1000, 26001], np.uint16), (8, 12))})
    dataset = SegmentationDataset(images, labels, classes={0: 'void', 1000: 'a', 26001: 'b'}, ignore=0)
    assert dataset.metainfo['classes']['semantic'] == ['a', 'b']
    assert semantic(dataset)[0, :3].tolist() == [255, 0, 1]


def test_labels_out_of_range_name_file_and_values(folders):
    images, labels = folders({'mask_0041': labels_of(0, 3, 255), 'mask_0042': labels_of(7, 254, 1)})
    dataset = SegmentationDataset(images, labels, classes=['a', 'b', 'c', 'd'])
    semantic(dataset, 0)
    with pytest.raises(DataError) as caught:
        dataset[1]
    assert caught.value.message == 'mask_0042.png: values {7, 254} not in 0..3 or ignore 255'
    with pytest.raises(DataError, match='mask_0042.png: values'):
        dataset.check()


def test_a_label_of_another_size_is_an_error(folders):
    images, labels = folders({'a': labels_of(0)})
    Image.new('L', (8, 12)).save(labels / 'a.png')  # (12, 8): the other way round
    with pytest.raises(DataError, match=r'\(12, 8\) for an image of \(8, 12\)') as caught:
        SegmentationDataset(images, labels, classes=['a'])[0]
    assert 'EXIF' in caught.value.why


def test_mistakes_in_folders_are_errors_at_construction(folders, tmp_path):
    images, labels = folders({f'image_{index}': labels_of(0) for index in range(5)})
    with pytest.raises(DataError, match='no folder of images'):
        SegmentationDataset(tmp_path / 'nowhere', labels, classes=['a'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='no images in'):
        SegmentationDataset(tmp_path / 'empty', labels, classes=['a'])
    (labels / 'image_3.png').unlink()
    with pytest.raises(DataError, match='1 of 5 images have no label, such as image_3.jpg'):
        SegmentationDataset(images, labels, classes=['a'])
    Image.new('RGB', (12, 8)).save(images / 'image_1.png')
    with pytest.raises(DataError, match='image_1.jpg and image_1.png'):
        SegmentationDataset(images, labels, classes=['a'])
    SegmentationDataset(images, classes=['a'], image_suffix='.jpg')


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'label_map': {0: 0, 1: 2}}, 'out of range'),
        ({'label_map': {0: 255, 1: None}}, 'ignores everything'),
        ({'ignore': 1, 'label_map': {1: 1}}, 'one meaning'),
        ({'label_map': {0: 0}, 'reduce_zero_label': True}, 'give one'),
        ({'palette': [[0, 0, 0]]}, 'colours = 1'),
        ({'palette': [[0, 0, 0], [0, 0, 300]]}, '0..255'),
        ({'classes': ['a', 'a']}, 'twice'),
        ({'classes': None}, 'not given'),
        ({'classes': [str(index) for index in range(256)]}, '256 classes'),
        ({'colored_labels': True, 'palette': [[1, 1, 1], [1, 1, 1]]}, 'one colour'),
    ],
)
def test_tables_that_cannot_be_right_are_config_errors(folders, options, words):
    images, labels = folders({'a': labels_of(0)})
    with pytest.raises(ConfigError) as caught:
        SegmentationDataset(images, labels, **{'classes': ['a', 'b'], **options})
    assert words in str(caught.value) and caught.value.fix


def test_split_lists_choose_and_cannot_lead_out(folders, tmp_path):
    images, labels = folders({'x/a': labels_of(0), 'x/b': labels_of(0), 'c': labels_of(0)})
    split = tmp_path / 'train.txt'
    split.write_text('x/b\nc.jpg\n\n')
    dataset = SegmentationDataset(images, labels, classes=['a'], split=split)
    assert [dataset[index].meta.image_id for index in range(2)] == ['x/b', 'c']
    outside = tmp_path / 'secret.jpg'
    Image.new('RGB', (4, 4)).save(outside)
    (images / 'link.jpg').symlink_to(outside)
    for name in ('../secret.jpg', str(outside), 'link.jpg', 'http://x/a.jpg', '..\\a', 'C:/a', 'a\0b'):
        split.write_text(name)
        with pytest.raises(DataError, match='leads out'):
            SegmentationDataset(images, labels, classes=['a'], split=split)
    split.write_text('x/d')
    with pytest.raises(DataError, match="'x/d' is in the split but not among"):
        SegmentationDataset(images, labels, classes=['a'], split=split)
    split.write_text('x\\a')
    with pytest.raises(DataError, match='has backslashes') as caught:
        SegmentationDataset(images, labels, classes=['a'], split=split)
    assert caught.value.fix == "write 'x/a'"


def test_evaluation_transforms_touch_only_the_image(folders):
    images, labels = folders({'a': labels_of(0, 1)})
    dataset = SegmentationDataset(
        images, labels, classes=['a', 'b'], transforms=[ResizeShortSide(size=16)], evaluation=True, name='mine'
    )
    sample = dataset[0]
    assert sample.img.shape == (3, 16, 24) and sample.target.semantic.shape == (8, 12)
    assert sample.meta.size == (16, 24) and sample.meta.orig_size == (8, 12) and sample.meta.dataset == 'mine'


def test_transforms_may_be_recipes_and_keep_tv_tensors(folders):
    images, labels = folders({'a': labels_of(0, 1), 'b': labels_of(1)})
    dataset = SegmentationDataset(
        images, labels, classes=['a', 'b'], transforms=[dict(type=RandomCrop, size=4, max_category_fraction=1.0)]
    )
    sample = dataset[0]
    assert isinstance(sample.img, tv_tensors.Image) and isinstance(sample.target.semantic, tv_tensors.Mask)
    batch = collate([dataset[0], dataset[1]])
    assert batch.imgs.shape == (2, 3, 4, 4) and type(batch.targets[0].semantic) is torch.Tensor


def test_images_alone_are_a_data_set_for_prediction(folders):
    images, _ = folders({'a': labels_of(0)})
    dataset = SegmentationDataset(images)
    assert dataset[0].target.semantic is None and dataset.metainfo['classes'] == {} and dataset.check() == 0


def test_classes_and_palette_from_files(folders, tmp_path):
    images, labels = folders({'a': labels_of(0, 1)})
    (tmp_path / 'classes.json').write_text(json.dumps({'classes': ['road', 'car']}))
    (tmp_path / 'palette.txt').write_text('255 0 0\n0, 0, 255\n')
    dataset = SegmentationDataset(images, labels, classes=tmp_path / 'classes.json', palette=tmp_path / 'palette.txt')
    assert dataset.metainfo['classes']['semantic'] == ['road', 'car']
    assert dataset.metainfo['palette']['semantic'] == [[255, 0, 0], [0, 0, 255]]


def test_paths_start_at_the_root(folders, tmp_path):
    folders({'a': labels_of(0, 1)})
    (tmp_path / 'names.txt').write_text('road\ncar\n')
    dataset = SegmentationDataset('images', 'labels', root=tmp_path, classes='names.txt')
    assert dataset.metainfo['classes']['semantic'] == ['road', 'car'] and len(dataset) == 1
    with pytest.raises(ConfigError, match="did you mean 'ade20k'"):
        SegmentationDataset('images', 'labels', root=tmp_path, classes='ade20')


def test_well_known_names_and_colours(shared):
    """ADE20K's own table and CamVid's own list begin each of our names; VOC's colours follow its rule."""
    assert [len(NAMES[key]) for key in ('ade20k', 'camvid', 'cityscapes', 'voc')] == [150, 11, 19, 21]
    table = read_classes(shared / 'ade20k_sample/objectInfo150.csv').values()
    assert all(ours.split()[0] in first for ours, first in zip(NAMES['ade20k'], table, strict=True))
    assert list(NAMES['camvid']) == list(read_classes(shared / 'camvid/classes.txt').values())
    assert [voc_colors()[index] for index in (0, 1, 2, 8, 15)] == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [64, 0, 0], [192, 128, 128]
    ]  # fmt: skip
    assert read_palette(None, NAMES['cityscapes'])[13] == [0, 0, 142]  # cars are blue


def test_made_up_colours_are_stable_and_distinct():
    colors = distinct_colors(150)
    assert colors[:10] == distinct_colors(10)
    assert len({tuple(color) for color in colors}) == 150


def test_user_data_is_read_only(folders, tmp_path):
    images, labels = folders({'a': labels_of(0), 'b': labels_of(1)})

    def fingerprints():
        files = sorted(path for path in tmp_path.rglob('*') if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = fingerprints()
    dataset = SegmentationDataset(images, labels, classes=['a', 'b'])
    dataset.check(), [dataset[index] for index in range(2)]
    assert fingerprints() == before


def test_the_python_of_the_documentation_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / 'docs/your_own_data.md').read_text()
    code = next(block for block in re.findall(r'```python\n(.*?)```', text, re.S) if 'train.check' in block)
    for folder, value in (('images', 90), ('masks', 1)):
        location = tmp_path / 'data/roads' / folder / 'train'
        location.mkdir(parents=True)
        Image.fromarray(np.full((6, 8, 3) if folder == 'images' else (6, 8), value, np.uint8)).save(
            location / '0001.png'
        )
    (tmp_path / 'data/roads/classes.txt').write_text('road\ncar\n')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names['sample'].target.semantic.shape == (6, 8)


def test_the_table_of_the_documentation_holds(folders):
    images, labels = folders({'a': labels_of(7, 8, 11, 0)})
    for options in (
        {'classes': ['a', 'b', 'c'], 'label_map': {7: 0, 8: 1, 11: 2, 0: 255}},
        {'classes': {7: 'a', 8: 'b', 11: 'c'}, 'ignore': [0]},
    ):
        assert semantic(SegmentationDataset(images, labels, **options))[0, :4].tolist() == [0, 1, 2, 255]


def test_images_and_labels_may_share_a_folder(tmp_path):
    for name in ('a', 'b'):
        Image.new('RGB', (4, 3)).save(tmp_path / f'{name}.jpg')
        Image.new('L', (4, 3)).save(tmp_path / f'{name}.png')
    suffixes = {'image_suffix': '.jpg', 'label_suffix': '.png'}
    assert len(SegmentationDataset(tmp_path, tmp_path, classes=['a'], **suffixes)) == 2
    with pytest.raises(DataError, match='image_suffix') as caught:
        SegmentationDataset(tmp_path, tmp_path, classes=['a'])
    assert 'a.jpg and a.png' in caught.value.message


@pytest.mark.parametrize(
    'content', ['null', '{"classes": null}', '"abc"', '5', '[null]', '[[1, 2]]', '{"a": [1, 2, 300]}']
)
def test_a_palette_or_class_file_of_something_else_is_a_config_error(tmp_path, content):
    (tmp_path / 'file.json').write_text(content)
    with pytest.raises(ConfigError):
        read_palette('file.json', ['a'], root=tmp_path)
    if content not in ('[null]', '[[1, 2]]'):
        with pytest.raises(ConfigError):
            read_classes('file.json', root=tmp_path)


def test_many_names_are_compared_at_once(tmp_path):
    (tmp_path / 'names.txt').write_text('\n'.join(f'class {index}' for index in range(50_000)))
    assert len(read_classes('names.txt', root=tmp_path)) == 50_000  # each with each: minutes
