"""Saved predictions of any origin: pycocotools' numbers from the same files, and mIoU of folders."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitdense.errors import ConfigError, DataError, NumericsError
from vitdense.metrics.average_precision import CocoAP
from vitdense.scoring.saved_predictions import evaluate_coco, evaluate_semantic

REAL = 'coco_mini480/annotations/instances_val2017.json'


def by_pycocotools(targets, results, iou_type='bbox'):
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(targets)
        evaluation = COCOeval(known, known.loadRes(str(results)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else value for value in evaluation.stats.tolist()]


def fake_results(annotations, seed=0):
    """Predictions in the manner of pycocotools' own fake results: objects moved, missed, doubled and mistaken."""
    rng = np.random.default_rng(seed)
    categories = sorted({record['category_id'] for record in annotations})
    rows = []
    for record in annotations:
        for _ in range(int(rng.integers(0, 4))):
            box = np.array(record['bbox']) * rng.normal(1, 0.1, 4)
            wrong = rng.random() < 0.2
            number = int(rng.choice(categories)) if wrong else record['category_id']
            score = float(rng.integers(0, 50) / 50)  # ties
            rows.append(dict(image_id=record['image_id'], category_id=number, bbox=box.round(2).tolist(), score=score))
    rng.shuffle(rows)
    return rows


@pytest.fixture
def write(tmp_path):
    def write(content, name='results.json'):
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


@pytest.fixture(params=['pycocotools', 'fast'])
def engine(request):
    if request.param == 'fast':
        pytest.importorskip('hotcoco')
    return request.param


def test_the_real_file_scores_as_in_pycocotools(shared, write, tmp_path):
    targets = shared / REAL
    results = write(fake_results(json.loads(targets.read_text())['annotations']))
    scores = evaluate_coco(targets, results, work_dir=tmp_path / 'out')
    assert list(scores.values()) == by_pycocotools(targets, results) and 0.05 < scores['det/AP'] < 0.9
    assert json.loads((tmp_path / 'out/metrics.json').read_text()) == scores
    assert list(scores) == [f'det/{name}' for name in CocoAP.names]
    pytest.importorskip('hotcoco')
    assert evaluate_coco(targets, results, engine='fast') == scores


def random_files(seed):
    """Annotations with gaps in all ids, crowds, polygons and run lengths, and results for them."""
    rng = np.random.default_rng(seed)
    images = [dict(id=int(number), height=120, width=160) for number in rng.permutation(200)[:25]]
    annotations, results = [], []
    for number, image in enumerate(np.repeat([record['id'] for record in images], rng.integers(0, 6, 25)).tolist()):
        x, y, w, h = rng.integers(1, 60, 4).tolist()
        crowd = rng.random() < 0.15
        box, ring = [x, y, w + 0.5, h + 0.25], [x, y, x + w, y, x + w, y + h, x, y + h + 1]
        segmentation = rle.encode(np.asfortranarray(rng.random((120, 160)) < 0.1, np.uint8)) if crowd else [ring]
        if crowd:
            segmentation = {'size': [120, 160], 'counts': segmentation['counts'].decode()}
        record = dict(id=7 * number + 3, image_id=image, category_id=int(rng.choice([2, 5, 11])), iscrowd=int(crowd))
        annotations.append(record | dict(bbox=box, area=w * h * 0.9, segmentation=segmentation))
        for _ in range(int(rng.integers(0, 4))):
            moved = np.array(ring) + rng.normal(0, 3, 8)
            runs = rle.frPyObjects([moved.tolist()], 120, 160)[0]
            predicted = dict(image_id=image, category_id=record['category_id'], score=float(rng.integers(1, 9) / 9))
            mask = {'size': [120, 160], 'counts': runs['counts'].decode()}
            results.append(predicted | dict(segmentation=mask, bbox=[round(moved[0], 1), round(moved[1], 2), w, h]))
    categories = [dict(id=number, name=f'c{number}') for number in (11, 2, 5, 30)]
    return dict(images=images, annotations=annotations, categories=categories), results


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind', ['bbox', 'segm', 'segm without boxes', 'bbox of masks'])
def test_random_files_score_as_in_pycocotools(seed, kind, write, engine):
    content, rows = random_files(seed)
    keys = {'bbox': ['bbox'], 'segm': ['bbox', 'segmentation']}.get(kind, ['segmentation'])
    rows = [{key: row[key] for key in ['image_id', 'category_id', 'score', *keys]} for row in rows]
    targets, results, iou_type = write(content, 'targets.json'), write(rows), kind.split()[0]
    scores = evaluate_coco(targets, results, iou_type=iou_type, engine=engine)
    assert list(scores.values()) == by_pycocotools(targets, results, iou_type)


def test_numbers_without_an_object_are_not_available(write):
    content, rows = random_files(0)
    assert evaluate_coco(write(content, 'targets.json'), write([]))['det/AP'] == 0.0
    content['annotations'] = []
    scores = evaluate_coco(write(content, 'targets.json'), write(rows))
    assert set(scores.values()) == {None} and len(scores) == 12


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(image_id=9999), 'no image of the annotation file has the id 9999'),
        (dict(category_id=3), 'no category 3'),
        (dict(score='high'), 'its score is not a number'),
        (dict(bbox=[1, 2, 3]), 'four numbers'),
        (dict(bbox=[1, 2, 3, None]), 'is not a number'),
    ],
)
def test_rows_that_cannot_be_scored_are_errors(write, change, message):
    content, rows = random_files(0)
    rows[4] |= change
    with pytest.raises(DataError, match='prediction 5 cannot be scored') as caught:
        evaluate_coco(write(content, 'targets.json'), write(rows))
    assert message in caught.value.why and caught.value.exit_code == 3


def test_predictions_that_are_not_finite_are_refused(write):
    content, rows = random_files(0)
    for row in rows[:7]:
        row['bbox'] = [float('nan')] * 4
    with pytest.raises(NumericsError, match='7 non-finite boxes') as caught:
        evaluate_coco(write(content, 'targets.json'), write(rows))
    assert caught.value.exit_code == 4
    assert 'results.json, first for image_id' in caught.value.where and 'training' not in caught.value.fix
    first = min(row['image_id'] for row in rows[:7])
    assert caught.value.where.endswith(f'image_id {first}')


def test_files_of_another_kind_are_errors(write, tmp_path):
    content, rows = random_files(0)
    targets = write(content, 'targets.json')
    with pytest.raises(DataError, match='no COCO results file'):
        evaluate_coco(targets, targets)
    with pytest.raises(DataError, match='no COCO annotation file'):
        evaluate_coco(write(rows), targets)
    with pytest.raises(DataError, match=r'cannot read nothing\.json'):
        evaluate_coco(targets, tmp_path / 'nothing.json')
    content['annotations'][0]['segmentation'] = [[1, 2, 3, float('nan'), 5, 6]]
    with pytest.raises(DataError, match='cannot be used'):
        evaluate_coco(write(content, 'targets.json'), write(rows), iou_type='segm')


@pytest.fixture
def folders(tmp_path):
    """Four labels 20 x 30 of three classes with some 255, and predictions that are right in 80 %."""
    rng = np.random.default_rng(0)
    for number in range(4):
        targets = rng.integers(0, 3, (20, 30)).astype(np.uint8)
        predicted = np.where(rng.random((20, 30)) < 0.8, targets, rng.integers(0, 3, (20, 30))).astype(np.uint8)
        targets[rng.random((20, 30)) < 0.1] = 255
        for folder, labels in (
            ('labels', targets),
            ('predicted', predicted),
            ('from_one', np.where(targets == 255, 0, targets + 1)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(labels.astype(np.uint8)).save(tmp_path / folder / f'{number}.png')
    return tmp_path


def test_folders_score_as_counted_by_hand(folders):
    hits = unions = 0
    for number in range(4):
        targets, predicted = (
            np.asarray(Image.open(folders / name / f'{number}.png')) for name in ('labels', 'predicted')
        )
        for_classes = [(targets == k, (predicted == k) & (targets != 255)) for k in range(3)]
        hits = hits + np.array([(one & other).sum() for one, other in for_classes])
        unions = unions + np.array([(one | other).sum() for one, other in for_classes])
    scores = evaluate_semantic(folders / 'labels', folders / 'predicted', num_classes=3, work_dir=folders / 'out')
    assert scores['sem/mIoU'] == pytest.approx((hits / unions).mean(), abs=1e-12)
    assert json.loads((folders / 'out/metrics.json').read_text()) == scores
    assert (folders / 'out/confusion.csv').exists()
    one = evaluate_semantic(folders / 'from_one', folders / 'predicted', num_classes=3, reduce_zero_label=True)
    assert one == scores


def test_folders_that_cannot_be_scored_are_errors(folders):
    def score(labels='labels', predicted='predicted', **options):
        return evaluate_semantic(folders / labels, folders / predicted, **{'num_classes': 3, **options})

    with pytest.raises(DataError, match=r'predicted classes \[3\]'):
        score(predicted='from_one')
    with pytest.raises(DataError, match=r'labels \[255\]'):
        score(ignore=7)
    with pytest.raises(ConfigError, match='--classes has 2 names'):
        (folders / 'names.txt').write_text('a\nb\n')
        score(classes=folders / 'names.txt')
    Image.new('L', (20, 30)).save(folders / 'predicted/2.png')
    with pytest.raises(DataError, match=r'2\.png: \(H, W\) \(30, 20\) for labels of \(20, 30\)'):
        score()
    (folders / 'predicted/2.png').unlink()
    with pytest.raises(DataError, match=r'1 of 4 label maps have no prediction, such as 2\.png'):
        score()


def test_labels_of_0_and_255_score_with_their_map_and_are_reported_without(tmp_path, capsys):
    rng = np.random.default_rng(0)
    targets, predicted = (rng.integers(0, 2, (20, 30)).astype(np.uint8) for _ in range(2))
    for folder, labels in (('labels', targets * 255), ('predicted', predicted)):
        (tmp_path / folder).mkdir()
        Image.fromarray(labels).save(tmp_path / folder / '0.png')
    wanted = np.mean(
        [((targets == k) & (predicted == k)).sum() / ((targets == k) | (predicted == k)).sum() for k in range(2)]
    )
    folders = (tmp_path / 'labels', tmp_path / 'predicted')
    scores = evaluate_semantic(*folders, num_classes=2, label_map={0: 0, 255: 1})
    assert scores['sem/mIoU'] == pytest.approx(wanted, abs=1e-12)
    assert 'warning' not in capsys.readouterr().out
    evaluate_semantic(*folders, num_classes=2)
    text = capsys.readouterr().out
    assert "class 1 'class 1' is in none of the 1 label maps" in text and 'label_map={0: 0, 255: 1}' in text
    with pytest.raises(DataError, match=r'values \{255\} not in'):
        evaluate_semantic(*folders, num_classes=2, label_map={0: 0, 1: 1}, ignore=7)


def test_boxes_without_a_size_are_logged(write, capsys):
    targets = {
        'images': [{'id': 1, 'file_name': 'a.png', 'width': 90, 'height': 90}],
        'categories': [{'id': 1, 'name': 'disc'}],
        'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [10, 10, 50, 50], 'area': 2500, 'iscrowd': 0}
        ],
    }
    rows = [{'image_id': 1, 'category_id': 1, 'bbox': [10, 10, size, 50], 'score': 0.5} for size in (-50, 0, 50)]
    targets, results = write(targets, 'targets.json'), write(rows)
    predicted = evaluate_coco(targets, results)
    assert '2 boxes have no positive width or height' in capsys.readouterr().out
    assert list(predicted.values())[:3] == pytest.approx(by_pycocotools(targets, results)[:3], abs=1e-12)
