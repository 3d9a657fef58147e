"""CocoAP against pycocotools fed by its own loaders, to the last digit; and where pycocotools is wrong."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitdense.data.shapes import ShapesScenes
from vitdense.errors import ConfigError, DataError, NumericsError
from vitdense.metrics.average_precision import CocoAP, in_order, refuse_non_finite
from vitdense.metrics.coco_columns import Objects, results_of
from vitdense.metrics.coco_curves import choose_engine
from vitdense.types import Batch, Instances, Meta, Target

NAMES = ['ant', 'bee', 'cow', 'dog', 'emu']
IDS = [1, 3, 7, 20, 90]


def random_images(count=40, seed=0, size=300):
    """Images of random objects, some crowds, with predictions near them and elsewhere; scores with many ties."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        objects = int(rng.integers(0, 9))
        corner, sides = rng.integers(0, size - 130, (objects, 2)), rng.integers(4, 130, (objects, 2))
        boxes = np.concatenate([corner, corner + sides], 1) + rng.integers(0, 100, (objects, 4)) / 100
        labels = rng.integers(0, len(NAMES) - 1, objects)  # there is no emu
        target = Target(
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            iscrowd=torch.from_numpy(rng.random(objects) < 0.1),
            area=torch.from_numpy((sides.prod(1) * rng.uniform(0.5, 1, objects)).round(2)),
        )
        near = np.repeat(boxes, 2, 0) + rng.normal(0, 4, (2 * objects, 4))
        far = rng.uniform(0, size / 2, (20, 2))
        actual = np.concatenate([near, np.concatenate([far, far + rng.uniform(1, 100, (20, 2))], 1)])
        predicted_labels = np.concatenate([np.repeat(labels, 2), rng.integers(0, len(NAMES), 20)])
        scores = rng.integers(1, 30, len(actual)) / 30
        order = np.argsort(-scores, kind='stable')
        instances = Instances(
            torch.from_numpy(actual[order]).float(),
            torch.from_numpy(scores[order]).float(),
            torch.from_numpy(predicted_labels[order]),
        )
        yield target, Meta(1000 - 7 * number, dataset='random', orig_size=(size, size)), instances


def evaluate(images, metainfo=None, **options):
    metric = CocoAP(**options)
    metric.dataset_meta = metainfo or {'classes': {'labels': NAMES}, 'category_ids': {'labels': IDS}}
    for target, meta, actual in images:
        metric.process(Batch(torch.zeros(1, 3, 1, 1), [target], [meta]), [{'det': actual}])
    return metric, metric.evaluate(len(images))


def annotations_of(images):
    """The same images as a COCO file has them."""
    rows = []
    for target, meta, _ in images:
        for row, box in enumerate(target.boxes.tolist()):
            record = dict(
                id=len(rows) + 1,
                image_id=meta.image_id,
                category_id=IDS[target.labels[row]],
                bbox=[box[0], box[1], round(box[2] - box[0], 9), round(box[3] - box[1], 9)],
                area=target.area[row].item(),
                iscrowd=int(target.iscrowd[row]),
            )
            if target.masks is not None:
                record['segmentation'] = results_of(
                    Instances(target.boxes, target.area, target.labels, target.masks), 0, IDS, masks=True
                )[row]['segmentation']
            rows.append(record)
    return dict(
        images=[dict(id=meta.image_id, height=meta.orig_size[0], width=meta.orig_size[1]) for _, meta, _ in images],
        categories=[dict(id=number, name=name) for number, name in zip(IDS, NAMES, strict=True)],
        annotations=rows,
    )


def by_pycocotools(targets, results, iou_type='bbox'):
    """The twelve numbers and the arrays as everybody computes them."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = json.loads(json.dumps(targets))
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(json.loads(json.dumps(results))), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def results(images, masks=False):
    return [row for _, meta, actual in images for row in results_of(actual, meta.image_id, IDS, masks=masks)]


@pytest.fixture(params=['pycocotools', 'fast'])
def engine(request):
    if request.param == 'fast':
        pytest.importorskip('hotcoco')
    return request.param


@pytest.mark.parametrize('seed', range(3))
def test_equals_pycocotools_to_the_last_digit(seed, engine):
    images = list(random_images(seed=seed))
    expected = by_pycocotools(annotations_of(images), results(images))
    metric, scores = evaluate(images, engine=engine)
    assert list(scores) == [f'det/{name}' for name in CocoAP.names]
    assert list(scores.values()) == expected.stats.tolist()
    assert np.array_equal(metric._curves.precision, expected.eval['precision'])
    assert np.array_equal(metric._curves.recall, expected.eval['recall'])


def test_the_table_has_the_ap_of_each_class():
    images = list(random_images())
    metric, _ = evaluate(images)
    precision = by_pycocotools(annotations_of(images), results(images)).eval['precision']
    rows = metric.table()
    assert [row.name for row in rows] == NAMES
    for number, row in enumerate(rows[:-1]):
        assert row.ap == precision[:, :, number, 0, 2].mean() and row.ap50 == precision[0, :, number, 0, 2].mean()
        counted = sum(int(((target.labels == number) & ~target.iscrowd).sum()) for target, _, _ in images)
        assert row.objects == counted > 0
    assert rows[-1] == ('emu', None, None, None, 0)  # predicted often, and nowhere to be found: n/a


def test_masks_equal_pycocotools(engine):
    scenes = ShapesScenes(12, split='val', size=96, radius=(5, 24))
    images = []
    for number in range(12):
        sample = scenes[number]
        masks = sample.target.masks.roll(number % 4, 2).as_subclass(torch.Tensor)
        scores = torch.linspace(0.9, 0.1, len(masks))
        actual = Instances(sample.target.boxes.as_subclass(torch.Tensor), scores, sample.target.labels, masks)
        images.append((sample.target, sample.meta, actual))
    expected = by_pycocotools(annotations_of(images), results(images, masks=True), 'segm')
    metric, scores = evaluate(images, iou_type='segm', engine=engine)
    assert 0.1 < scores['det/segm/AP'] < 1
    known = [value for value in expected.stats.tolist() if value > -1]
    assert list(scores.values()) == known and len(known) < 12  # nothing is larger than 96 x 96
    assert np.array_equal(metric._curves.precision, expected.eval['precision'])


def _both(rank):
    """The numbers of a share of the images; then, with NaN in the boxes of one rank, what is said."""
    scores = evaluate(list(random_images())[rank::2])[1]
    images = [
        (target, meta._replace(image_id=2 * meta.image_id + rank), actual._replace(boxes=actual.boxes * factor))
        for (target, meta, actual), factor in zip(random_images(4), [float('nan') if rank else 1] * 4, strict=True)
    ]
    with pytest.raises(NumericsError) as caught:
        evaluate(images)
    return scores, caught.value.message


def test_two_ranks_give_the_numbers_of_one_and_refuse_together(run_ranks):
    bad = sum(len(actual.boxes) for _, _, actual in random_images(4))
    message = f'{bad} non-finite boxes and 0 non-finite scores among {2 * bad} predictions'
    assert run_ranks(_both) == [(evaluate(list(random_images()))[1], message)] * 2


def test_infinite_scores_are_refused():
    images = [(t, m, f._replace(scores=f.scores / 0)) for t, m, f in random_images(2)]
    with pytest.raises(NumericsError, match='non-finite scores'):
        evaluate(images)


def none():
    return Instances(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_no_prediction_is_zero_and_no_object_is_not_available(engine, caplog):
    images = list(random_images(8))
    _, scores = evaluate([(t, m, none()) for t, m, _ in images], engine=engine)
    assert set(scores.values()) == {0.0} and 'det/AP' in scores and 'n/a' not in caplog.text  # although no emu is there
    empty = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    metric, scores = evaluate([(empty, m, f) for _, m, f in images], engine=engine)
    assert scores == {} and {row.ap for row in metric.table()} == {None}
    assert 'n/a, there is no object to find' in caplog.text
    crowds = [(t._replace(iscrowd=torch.ones(len(t.labels), dtype=torch.bool)), m, f) for t, m, f in images]
    assert evaluate(crowds, engine=engine)[1] == {}


def test_an_image_without_annotations_is_skipped(caplog):
    images = list(random_images(8))
    _, scores = evaluate(images)
    boxes = torch.zeros(1, 4)
    for number, target in enumerate((Target(), Target(boxes=boxes), Target(labels=torch.zeros(1, dtype=torch.int64)))):
        unlabelled = (target, Meta(number, dataset='random'), images[0][2])
        metric, with_it = evaluate([*images, unlabelled])
        assert with_it == scores and 'skipped without target: 1 of' in caplog.text
        caplog.clear()
        metric.evaluate(0)  # of nothing
        assert 'skipped' not in caplog.text


def test_what_cannot_be_right_is_an_error():
    images = list(random_images(3))
    with pytest.raises(DataError, match='evaluated twice'):
        evaluate([*images, images[0]])
    with pytest.raises(ConfigError, match=r'predicted classes \[9\]'):
        target, meta, actual = images[0]
        evaluate([(target, meta, actual._replace(labels=actual.labels * 0 + 9))])
    with pytest.raises(DataError, match='not finite'):
        evaluate([(images[0][0]._replace(area=images[0][0].area / 0), *images[0][1:])])
    with pytest.raises(ConfigError, match='have no masks'):
        masks = torch.zeros(len(images[0][0].labels), 4, 4, dtype=torch.bool)
        evaluate([(images[0][0]._replace(masks=masks), *images[0][1:])], iou_type='segm')
    with pytest.raises(DataError, match='no masks to compare'):
        evaluate(images, iou_type='segm')
    with pytest.raises(ConfigError, match='does not know the classes'):
        evaluate(images, metainfo={'classes': {}})
    with pytest.raises(ConfigError, match='iou_type'):
        CocoAP(iou_type='keypoints')


def test_the_engine_is_chosen_by_what_is_installed(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert choose_engine('auto') == choose_engine('pycocotools') == 'pycocotools'
    with pytest.raises(ConfigError, match='not installed') as caught:
        CocoAP(engine='fast')
    assert "pip install 'vitdense[fast]'" in caught.value.fix
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    assert choose_engine('auto') == 'fast' and choose_engine('pycocotools') == 'pycocotools'


def test_perfect_predictions_of_synthetic_scenes_score_one():
    scenes = ShapesScenes(10, split='val')
    metric = CocoAP()
    metric.dataset_meta = scenes.metainfo
    for number in range(10):
        sample = scenes[number]
        target = sample.target
        actual = Instances(target.boxes, torch.ones(len(target.labels)), target.labels)
        metric.process(Batch(sample.img[None], [target], [sample.meta]), [{'det': actual}])
    scores = metric.evaluate(10)
    assert scores['det/AP'] == scores['det/AP50'] == pytest.approx(1) and scores['det/AR100'] == 1


@pytest.mark.parametrize('limit', [20, 300])
def test_another_limit_is_that_of_pycocotools(limit, engine):
    images = list(random_images())
    metric, scores = evaluate(images, engine=engine, max_detections=limit)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = json.loads(json.dumps(annotations_of(images)))
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(json.loads(json.dumps(results(images)))), 'bbox')
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
    assert np.array_equal(metric._curves.precision, evaluation.eval['precision'])
    assert np.array_equal(metric._curves.recall, evaluation.eval['recall'])
    assert list(scores) == [f'det/{name.replace("100", str(limit))}' for name in CocoAP.names]
    assert f'AR{limit}' in metric.names and 'AR100' not in metric.names


@pytest.mark.parametrize('limit', [10, 0, 100.0, True, 'all'])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match='max_detections'):
        CocoAP(max_detections=limit)


def test_one_coordinate_that_is_not_finite_is_refused():
    boxes, scores = np.array([[0.0, 0, 4, 4], [0, 0, np.inf, 4]]), np.array([0.5, 0.5])
    none = np.zeros(2, dtype=np.int64)
    with pytest.raises(NumericsError, match='1 non-finite boxes and 0 non-finite scores among 2'):
        refuse_non_finite([Objects(none, none, boxes, scores, none.astype(bool), scores)], where='here')
    with pytest.raises(NumericsError, match='0 non-finite boxes and 1 non-finite scores among 2'):
        worse = np.array([np.nan, 0.5])
        refuse_non_finite([Objects(none, none, boxes[[0, 0]], scores, none == 1, worse)], where='here')


def crowded(*rows, limit=11):
    """What is said of images with as many objects and predictions of a class, for each (id, class, count)."""
    images = []
    for image, label, count in rows:
        boxes = torch.arange(count)[:, None] * 20.0 + torch.tensor([0.0, 0, 10, 10])
        labels, scores = torch.tensor(label).expand(count), torch.linspace(0.9, 0.1, count)
        target = Target(boxes=boxes, labels=labels, iscrowd=torch.zeros(count).bool(), area=torch.full((count,), 100.0))
        images.append((target, Meta(image, dataset='random'), Instances(boxes, scores, labels)))
    return evaluate(images, max_detections=limit)[0].remark


def test_images_with_more_objects_than_count_are_counted(caplog):
    caplog.set_level('INFO', 'vitdense')
    assert crowded((0, 0, 12), (1, 1, 11)).startswith('1 of 2 images has more than 11 objects of one class')
    assert '1 of 23 predictions do not count: they are beyond the best 11' in caplog.text
    caplog.clear()
    assert crowded((0, 0, 12), (1, 1, 14)).startswith('2 of 2 images have more')
    assert '4 of 26 predictions do not count' in caplog.text
    assert crowded((0, [0, 1] * 12, 24), (1, 1, 1)).startswith('1 of 2 images has')  # of two classes
    caplog.clear()
    # neither objects of one class in several images, nor of several classes in one, are put together
    assert (
        crowded((0, 1, 8), (1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 0, 1), (5, 0, 8)) == '' and 'do not' not in caplog.text
    )


def test_categories_stand_in_the_order_of_their_ids_and_unknown_ones_behind():
    for ids, rows in (
        ([7, 3, 90, 20, 1], [2, 1, 4, 3, 0]),
        ([7, None, 90, None, 1], [1, 3, 2, 4, 0]),
        ([None] * 5, [0, 1, 2, 3, 4]),
    ):
        metric = CocoAP()
        metric.dataset_meta = {'classes': {'labels': NAMES}, 'category_ids': {'labels': ids}}
        assert metric._rows() == rows
    assert CocoAP(classes=NAMES)._rows() == [0, 1, 2, 3, 4]


def test_images_of_all_processes_stand_in_the_order_of_their_ids():
    order = in_order([[('a', 3), ('a', 10)], [('a', 1)], []])
    assert [locations.tolist() for locations in order] == [[1, 2], [0], []]
    assert [locations.tolist() for locations in in_order([[('b', 'a'), ('a', 'b'), ('a', 10)]])] == [[2, 1, 0]]
    with pytest.raises(DataError, match='image 3 was evaluated twice'):
        in_order([[('a', 3), ('a', 10)], [('a', 3)]])
