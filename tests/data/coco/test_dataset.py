"""CocoDetection on real COCO images, on files with everything wrong in them, and against pycocotools' own reading."""

import contextlib
import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision import tv_tensors

from vitdense.data.coco.dataset import CocoDetection
from vitdense.data.collate import collate
from vitdense.data.sampling import SampleIndex, SeededDataset
from vitdense.data.transforms.common import RandomFlip, ResizeTo
from vitdense.errors import ConfigError, DataError
from vitdense.metrics.average_precision import CocoAP
from vitdense.metrics.coco_columns import results_of
from vitdense.types import Batch, Instances, Meta


@pytest.fixture
def tree(tmp_path):
    """Write a small data set; `write(annotations, ...)` gives its file."""

    class Tree:
        root = tmp_path
        (tmp_path / 'images').mkdir()

        def write(self, annotations, *, images=3, categories=((7, 'cat'), (90, 'dog')), name='a.json', size=(60, 80)):
            rows = []
            for number in range(1, images + 1):
                Image.new('RGB', size[::-1], (10 * number,) * 3).save(tmp_path / 'images' / f'{number}.png')
                rows.append(dict(id=number, file_name=f'{number}.png', height=size[0], width=size[1]))
            content = dict(images=rows, categories=[dict(id=k, name=n) for k, n in categories], annotations=annotations)
            (tmp_path / name).write_text(json.dumps(content))
            return content

        def open(self, name='a.json', **options):
            return CocoDetection(name, 'images', root=tmp_path, **options)

    return Tree()


def box(number, bbox=(10, 10, 20, 15), *, image=1, category=7, **more):
    return dict(id=number, image_id=image, category_id=category, bbox=list(bbox), area=100, iscrowd=0) | more


@pytest.fixture
def log_text(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('vitdense'), 'propagate', True)
    caplog.set_level(logging.INFO, 'vitdense')
    return caplog


def test_a_sample_equals_the_annotation_file(tree):
    tree.write([box(5, category=90), box(9, (0, 0, 80, 60), iscrowd=1), box(8, image=3)])
    data = tree.open()
    assert len(data) == 3 and data.metainfo['classes'] == {'labels': ['cat', 'dog']}
    assert data.metainfo['category_ids'] == {'labels': [7, 90]}
    img, target, meta = data[0]
    assert img.shape == (3, 60, 80) and isinstance(target.boxes, tv_tensors.BoundingBoxes)
    assert target.boxes.tolist() == [[10, 10, 30, 25], [0, 0, 80, 60]] and target.boxes.dtype == torch.float32
    assert target.labels.tolist() == [1, 0] and target.iscrowd.tolist() == [False, True]
    assert target.annotation_ids.tolist() == [5, 9] and target.area.tolist() == [100, 100] and target.masks is None
    assert meta.image_id == 1 and meta.dataset == 'images' and meta.orig_size == meta.size == (60, 80)
    empty = data[1].target  # an image without annotations stays: there is nothing in it
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)
    assert [sample.meta.image_id for sample in (tree.open(drop_empty=True)[i] for i in (0, 1))] == [1, 3]


def test_evaluation_transforms_the_image_only_and_does_not_round(tree):
    odd = (10.123456789, 10.1, 30.7, 25.3)
    tree.write([box(1, odd), box(2, (70, 50, 20.01, 20)), box(3, (5, 5, 0.5, 9))])
    sample = tree.open(evaluation=True, transforms=[ResizeTo(size=30), RandomFlip(probability=1)])[0]
    assert sample.img.shape == (3, 30, 30) and sample.meta.size == (30, 30) and sample.meta.orig_size == (60, 80)
    assert sample.target.boxes.dtype == sample.target.area.dtype == torch.float64
    assert sample.target.boxes[0].tolist() == [10.123456789, 10.1, 10.123456789 + 30.7, 10.1 + 25.3]
    assert len(sample.target.labels) == 3


def test_training_boxes_are_clamped_and_dropped_with_a_count(tree, log_text):
    """FI-06: width 0, outside, partly outside, negative width."""
    tree.write([box(1), box(2, (5, 5, 0, 9)), box(3, (90, 5, 9, 9)), box(4, (70, 50, 20, 20)), box(5, (30, 5, -9, 9))])
    data = tree.open()
    assert data[0].target.boxes.tolist() == [[10, 10, 30, 25], [70, 50, 80, 60]]
    assert data[0].target.annotation_ids.tolist() == [1, 4]
    assert 'a.json: boxes dropped 3, clamped 1' in log_text.text


@pytest.mark.parametrize(
    ('record', 'reason'),
    [
        (box(17, (1, 1, float('nan'), 4)), 'box 17: bbox [1, 1, nan, 4]: its numbers are not finite'),
        (box(17, ('1', 1, 4, 4)), 'box 17'),
        (box(17, (1, 1, 4)), 'four numbers'),
        (box(17, category=8), 'category 17: no category has the id 8'),
        (box('a17'), 'id a17: it has no whole number as id'),
    ],
)
def test_unusable_annotations_are_errors_with_their_id(tree, record, reason):
    tree.write([box(1), record])
    for evaluation in (False, True):
        with pytest.raises(DataError, match='1 annotations or images cannot be used') as caught:
            tree.open(evaluation=evaluation)
        assert reason in caught.value.why


BAD_SEGMENTATIONS = {
    'coordinates that are not finite': [[0, 0, 9, 0, 9, float('nan')]],
    'not finite': [[0, 0, 9, 0, 9, float('inf')]],
    'up to 1e+09': [[0, 0, 9, 0, 9, 1e9]],
    'three points are six': [[1, 2, 3, 4]],
    'no number': [[1, 2, 3, 4, 5, '6']],
    'run lengths of size': dict(size=[100000, 100000], counts=[10**10]),
    'add up to 4799 of 4800': dict(size=[60, 80], counts=[4799]),
    'is negative': dict(size=[60, 80], counts=[-5, 4805]),
    'no run lengths': dict(size=[60, 80], counts='\x7f\x01'),
    'list of its own': [0, 0, 9, 0, 9, 9],
}


@pytest.mark.parametrize('reason', BAD_SEGMENTATIONS)
def test_bad_segmentations_never_reach_c_code(tree, reason):
    """FI-07: each of the first half ends the process when pycocotools reads it."""
    tree.write([box(1), box(17, segmentation=BAD_SEGMENTATIONS[reason])])
    with pytest.raises(DataError) as caught:
        tree.open(masks=True)
    assert 'segmentation 17: ' in caught.value.why and reason in caught.value.why
    assert len(tree.open()[0].target.labels) == 2  # who does not ask for masks does not need them


def test_corners_in_place_of_sizes_are_found(tree):
    corners = [box(number, (5 * number, 5, 5 * number + 30, 40)) for number in range(1, 9)]
    tree.write(corners)
    with pytest.raises(DataError, match='38% of boxes leave the image if read as xywh; they fit as xyxy'):
        tree.open()


def test_a_file_without_boxes_is_an_error_in_training(tree):
    tree.write([])
    with pytest.raises(DataError, match=r'no annotations in a\.json'):
        tree.open()
    content = tree.write([])
    assert len(tree.open(evaluation=True)[0].target.labels) == 0
    del content['annotations']  # a list of images for prediction, as COCO's test files are
    (tree.root / 'a.json').write_text(json.dumps(content))
    assert tree.open(evaluation=True)[0].target.boxes is None


def test_structure_that_is_not_coco_is_an_error(tree):
    cases = {
        '{"images": []': 'it is not JSON',
        '[]': "no list 'images'",
        '{"images": []}': "no list 'categories'",
        '{"images": [{"id": null}], "categories": [{"id": 1, "name": "a"}]}': 'an image needs an id',
        '{"images": [], "categories": [{"id": "x"}]}': 'a category needs',
    }
    for text, why in cases.items():
        (tree.root / 'a.json').write_text(text)
        with pytest.raises(DataError, match='no COCO annotation file') as caught:
            tree.open()
        assert why in caught.value.why
    tree.write([box(1)], categories=((1, 'cat'), (2, 'cat')))
    with pytest.raises(DataError, match="categories are called 'cat': those with the ids"):
        tree.open()
    with pytest.raises(DataError, match=r'cannot read b\.json'):
        tree.open('b.json')
    with pytest.raises(DataError, match='no folder of images'):
        CocoDetection('a.json', 'nowhere', root=tree.root)


@pytest.mark.parametrize('name', ['../../etc/passwd', '/etc/passwd', 'a\0b', 'http://x/y.png', '..\\b.png', None])
def test_images_cannot_lie_outside(tree, name):
    content = tree.write([box(1)])
    content['images'][1]['file_name'] = name
    (tree.root / 'a.json').write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        tree.open()
    assert ('leads out of the folder' if name else 'it has no file_name') in caught.value.why


def test_a_link_out_of_the_folder_is_not_followed(tree):
    content = tree.write([box(1)])
    (tree.root / 'secret.png').write_bytes((tree.root / 'images/1.png').read_bytes())
    (tree.root / 'images/link.png').symlink_to(tree.root / 'secret.png')
    content['images'][0]['file_name'] = 'link.png'
    (tree.root / 'a.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"'link.png' leads out of the data folder: it is a link to .*secret.png"):
        tree.open()[0]


def test_a_image_of_another_size_is_an_error(tree):
    tree.write([box(1)])
    Image.new('RGB', (60, 80)).save(tree.root / 'images/1.png')
    data = tree.open()
    for look in (lambda: data[0], data.check):
        with pytest.raises(DataError, match=r'\(H, W\) \(80, 60\), but the annotation file says \(60, 80\)') as caught:
            look()
    assert 'it looks turned' in caught.value.why
    assert tree.open(check_sizes=False)[0].img.shape == (3, 80, 60)
    assert data[1].img.shape == (3, 60, 80)


def test_classes_choose_and_number_the_categories(tree):
    tree.write([box(1), box(2, category=90)])
    data = tree.open(classes=['dog'])
    assert data[0].target.labels.tolist() == [0] and data[0].target.annotation_ids.tolist() == [2]
    assert data.metainfo['category_ids'] == {'labels': [90]}
    assert tree.open(classes=['dog', 'cat'])[0].target.labels.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        tree.open(classes=['dgo'])


def test_another_file_is_numbered_by_name(tree):
    tree.write([box(1), box(2, category=90)])
    tree.write([box(1), box(2, category=3)], categories=((3, 'cat'), (7, 'dog')), name='b.json')
    first, second = tree.open(), tree.open('b.json')
    second.set_classes({'labels': ['emu', 'dog', 'cat']})
    assert second[0].target.labels.tolist() == [1, 2]
    assert second.metainfo['category_ids'] == {'labels': [None, 7, 3]}
    assert second.object_counts(of_one_class=True).tolist()[0] == 1 and '2 objects of 2 classes' in second.summary()
    second.set_classes(first.metainfo['classes'])
    assert second.metainfo['classes'] == first.metainfo['classes'] and second[0].target.labels.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="classes = 'dog'"):
        first.set_classes({'labels': ['cat']})


def test_masks_are_those_of_pycocotools(tree):
    size = (60, 80)
    pixels = np.zeros(size, np.uint8, order='F')
    pixels[10:30, 20:50] = 1
    packed = rle.encode(pixels)['counts'].decode()
    ways = [
        [[20, 10, 50, 10, 50, 30, 20, 30]],
        [[5.5, 5, 30, 7, 20, 40], [40, 40, 60, 40, 60, 55, 41, 50]],
        [[-20, -20, 30, -20, 30, 30]],
        dict(size=list(size), counts=packed),
        dict(size=list(size), counts=np.diff(np.flatnonzero(np.diff(pixels.T.ravel(), prepend=2, append=2))).tolist()),
    ]
    tree.write([box(number, segmentation=way, iscrowd=int(number > 4)) for number, way in enumerate(ways, 1)])
    masks = tree.open(masks=True)[0].target.masks
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(tree.root / 'a.json')
    assert masks.dtype == torch.bool and masks.shape == (5, *size)
    for number, mask in enumerate(masks, 1):
        assert np.array_equal(mask.numpy(), known.annToMask(known.anns[number]).astype(bool))


def test_objects_without_mask_are_an_error_or_leave_with_their_image(tree):
    polygon = [[0, 0, 9, 0, 9, 9]]
    tree.write([box(1, segmentation=polygon), box(2, image=2), box(3, image=1, iscrowd=1)])
    with pytest.raises(DataError, match='1 of 3 annotations have no segmentation'):
        tree.open(masks=True)
    data = tree.open(masks=True, skip_unmasked=True)
    assert [data[index].meta.image_id for index in range(len(data))] == [1, 3]
    assert data[0].target.masks[1].sum() == 20 * 15  # a crowd without segmentation is its box
    assert data[1].target.masks.shape == (0, 60, 80)


def test_same_batches_for_any_number_of_workers(shared):
    tree = shared / 'coco_mini480'
    data = CocoDetection(
        'annotations/instances_train2017.json', 'train2017', root=tree, transforms=[RandomFlip(), ResizeTo(size=64)]
    )
    samples = [[SampleIndex(0, number) for number in range(8)]]
    batches = [
        next(iter(torch.utils.data.DataLoader(SeededDataset(data), None, sampler=samples[0], num_workers=0))).img,
        next(iter(torch.utils.data.DataLoader(SeededDataset(data), None, sampler=samples[0], num_workers=2))).img,
    ]
    assert torch.equal(*batches)


def test_the_real_file_is_what_pycocotools_reads(shared):
    tree = shared / 'coco_mini480'
    data = CocoDetection('annotations/instances_val2017.json', 'val2017', root=tree, evaluation=True)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(tree / 'annotations/instances_val2017.json')
    ids = data.metainfo['category_ids']['labels']
    assert len(data) == 206 and ids == sorted(known.cats) and ids[-1] == 90
    assert data.metainfo['classes']['labels'] == [known.cats[number]['name'] for number in ids]
    for index in range(len(data)):
        target = data._target(int(data._rows[index]), (1, 1))
        annotations = known.imgToAnns[data.image_id(index)]
        assert target.annotation_ids.tolist() == [record['id'] for record in annotations]
        assert [ids[label] for label in target.labels] == [record['category_id'] for record in annotations]
        assert target.iscrowd.tolist() == [bool(record['iscrowd']) for record in annotations]
        assert target.area.tolist() == [record['area'] for record in annotations]
    assert data.check(None) == 206
    batch = collate([data[0], data[1]])
    assert type(batch.targets[0].boxes) is torch.Tensor


def test_scores_of_real_targets_are_those_of_the_file(shared):
    """From the file through Target records to the numbers: nothing is rounded on the way."""
    tree = shared / 'coco_mini480'
    file = tree / 'annotations/instances_val2017.json'
    data = CocoDetection(file, 'val2017', root=tree, evaluation=True)
    metric = CocoAP()
    metric.dataset_meta = data.metainfo
    rows, generator = [], torch.Generator().manual_seed(0)
    for index in range(len(data)):
        target = data._target(int(data._rows[index]), tuple(data._arrays.sizes[index].tolist()))
        boxes = target.boxes.as_subclass(torch.Tensor).repeat(2, 1)
        boxes = (boxes + 6 * torch.randn(boxes.shape, generator=generator, dtype=torch.float64)).float()
        boxes[len(boxes) // 2 :: 3] = boxes[len(boxes) // 2 :: 3].round()
        scores = torch.rand(len(boxes), generator=generator)
        labels = torch.where(torch.rand(len(boxes), generator=generator) < 0.2, 5, target.labels.repeat(2))
        actual = Instances(boxes, scores, labels)
        meta = Meta(data.image_id(index), dataset=data.name)
        metric.process(Batch(torch.zeros(1, 3, 1, 1), [target], [meta]), [{'det': actual}])
        rows += results_of(actual, meta.image_id, data.metainfo['category_ids']['labels'])
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(file)
        evaluation = COCOeval(known, known.loadRes(json.loads(json.dumps(rows))), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = metric.evaluate(len(data))
    assert list(scores.values()) == evaluation.stats.tolist() and 0.1 < scores['det/AP'] < 0.9
    assert np.array_equal(metric._curves.precision, evaluation.eval['precision'])
