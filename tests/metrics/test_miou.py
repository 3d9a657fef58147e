"""MeanIoU against brute force, torchmetrics and two processes."""

import csv

import numpy as np
import pytest
import torch

from vitdense.errors import ConfigError, DataError
from vitdense.metrics import miou
from vitdense.metrics.miou import MeanIoU, count_pairs
from vitdense.types import IGNORE, Batch, Meta, SemanticMap, Target

NAMES = ['sky', 'road', 'car', 'tree', 'unicorn']


def _images(count=3, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        size = (20 + index, 31)
        target = torch.randint(0, classes, size, generator=generator, dtype=torch.uint8)
        wrong = torch.randint(0, classes, size, generator=generator, dtype=torch.uint8)
        labels = torch.where(torch.rand(size, generator=generator) < 0.6, target, wrong)
        target[torch.rand(size, generator=generator) < 0.2] = IGNORE
        yield target, labels


def _batch(targets):
    targets = [Target(semantic=target) for target in targets]
    return Batch(torch.zeros(len(targets), 3, 1, 1), targets, [Meta(index) for index in range(len(targets))])


def _evaluate(metric, images):
    for target, labels in images:
        metric.process(_batch([target]), [{'sem': SemanticMap(labels)}])
    return metric.evaluate(len(images))


def _brute_force(images, num_classes):
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for target, labels in images:
        for t, p in zip(target.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if t != IGNORE:
                confusion[t, p] += 1
    return confusion


def test_equals_brute_force():
    images = list(_images())
    metric = MeanIoU(classes=NAMES[:4])
    scores = _evaluate(metric, images)
    confusion = _brute_force(images, 4)
    assert metric.confusion.dtype == torch.int64 and torch.equal(metric.confusion, confusion)
    ious, accs, dices = [], [], []
    for k in range(4):
        hit, true, predicted = confusion[k, k].item(), confusion[k].sum().item(), confusion[:, k].sum().item()
        ious.append(hit / (true + predicted - hit))
        accs.append(hit / true)
        dices.append(2 * hit / (true + predicted))
    assert scores['sem/mIoU'] == pytest.approx(sum(ious) / 4, abs=1e-12)
    assert scores['sem/mAcc'] == pytest.approx(sum(accs) / 4, abs=1e-12)
    assert scores['sem/mDice'] == pytest.approx(sum(dices) / 4, abs=1e-12)
    assert scores['sem/aAcc'] == pytest.approx(confusion.diagonal().sum().item() / confusion.sum().item(), abs=1e-12)
    assert [row.iou for row in metric.table()] == pytest.approx(ious)
    assert [row.acc for row in metric.table()] == pytest.approx(accs)
    assert [row.pixels for row in metric.table()] == confusion.sum(1).tolist()


def test_equals_torchmetrics():
    classification = pytest.importorskip('torchmetrics.classification')
    images = list(_images())
    jaccard = classification.MulticlassJaccardIndex(5, ignore_index=IGNORE, average='macro')
    for target, labels in images:
        jaccard.update(labels[None].long(), target[None].long())
    scores = _evaluate(MeanIoU(classes=NAMES), images)  # the fifth class does not occur
    assert scores['sem/mIoU'] == pytest.approx(jaccard.compute().item(), abs=1e-6)
    target, labels = (torch.cat([part.flatten() for part in parts]).long() for parts in zip(*images, strict=True))
    for name, kind, average in (
        ('aAcc', classification.MulticlassAccuracy, 'micro'),
        ('mAcc', classification.MulticlassAccuracy, 'macro'),
        ('mDice', classification.MulticlassF1Score, 'macro'),
    ):
        metric = kind(5, average=average, ignore_index=IGNORE)
        assert scores[f'sem/{name}'] == pytest.approx(metric(labels[target != IGNORE], target[target != IGNORE]).item())


@pytest.fixture
def message(monkeypatch, caplog):
    """Messages of the log."""
    monkeypatch.setattr(miou.logger, 'propagate', True)
    caplog.set_level('INFO', 'vitdense')
    return caplog


def test_absent_class_is_left_out_and_said_so(message):
    images = list(_images())
    metric = MeanIoU(classes=NAMES)
    assert _evaluate(metric, images) == _evaluate(MeanIoU(classes=NAMES[:4]), images)
    assert metric.table()[4] == ('unicorn', None, None, 0)
    assert any('1 of 5 classes' in text and 'unicorn' in text for text in message.messages)


def test_class_only_predicted_counts_as_zero_iou():
    target, labels = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    labels[0] = 1
    scores = _evaluate(MeanIoU(classes=NAMES), [(target, labels)])
    assert scores['sem/mIoU'] == pytest.approx((0.75 + 0) / 2)
    assert scores['sem/mAcc'] == pytest.approx(0.75)
    labels[0, 1:] = 0  # a single pixel of the other class
    metric = MeanIoU(classes=NAMES)
    assert _evaluate(metric, [(target, labels)])['sem/mIoU'] == pytest.approx(15 / 16 / 2)
    assert [row.iou for row in metric.table()] == pytest.approx([15 / 16, 0, None, None, None])
    target[0, 0] = 1
    assert _evaluate(metric, [(target, target * 0)])['sem/mAcc'] == 0.5


def test_another_label_may_be_the_one_that_does_not_count():
    target, labels = (
        torch.tensor([[0, 0, 1, 2]], dtype=torch.uint8),
        torch.tensor([[1, 2, 1, 2]], dtype=torch.uint8),
    )
    for kind in (torch.uint8, torch.int16):
        assert count_pairs(target.to(kind), labels.to(kind), 3, ignore=0).tolist() == [
            [0, 0, 0],
            [0, 1, 0],
            [0, 0, 1],
        ]


def test_no_labelled_pixel_means_no_score(message):
    blank = torch.full((4, 4), IGNORE, dtype=torch.uint8)
    metric = MeanIoU(classes=NAMES)
    metric.process(_batch([blank, None]), [{'sem': SemanticMap(torch.zeros(4, 4, dtype=torch.uint8))}] * 2)
    assert metric.evaluate(2) == {}
    assert any('n/a' in text for text in message.messages) and any(
        'skipped without target: 1 ' in text for text in message.messages
    )
    message.clear()
    metric.evaluate(0)
    _evaluate(MeanIoU(classes=NAMES), list(_images()))
    assert not any('skipped' in text for text in message.messages)
    with pytest.raises(RuntimeError, match='before the first'):
        _ = MeanIoU(classes=NAMES).confusion


@pytest.mark.parametrize('names', [NAMES, NAMES[:1]])
def test_without_a_second_class_there_is_no_score(message, names):
    target = torch.zeros(4, 4, dtype=torch.uint8)
    target[0] = IGNORE
    metric = MeanIoU(classes=names)
    assert _evaluate(metric, [(target, target * 0)]) == {}
    assert [row.iou for row in metric.table()] == [None] * len(names) and metric.table()[0].pixels == 12
    assert any('every labelled pixel is sky and predicted so' in text for text in message.messages)


def test_evaluate_resets_the_counts_and_classes_come_from_the_data_set():
    metric = MeanIoU()
    metric.dataset_meta = {'classes': {'semantic': NAMES[:4]}}
    images = list(_images())
    first = _evaluate(metric, images)
    assert _evaluate(metric, images) == first
    assert metric.evaluate(0) == {}


def test_classes_must_be_known():
    metric = MeanIoU()
    metric.dataset_meta = {'classes': {'labels': NAMES}}
    with pytest.raises(ConfigError, match="classes of 'semantic'"):
        metric.evaluate(0)


def test_wrong_values_name_the_image():
    good, bad = torch.zeros(4, 4, dtype=torch.uint8), torch.full((4, 4), 7, dtype=torch.uint8)
    with pytest.raises(DataError, match=r'labels \[7\] are not in 0..3') as caught:
        count_pairs(bad, good, 4, where='a.png')
    assert caught.value.where == 'a.png'
    with pytest.raises(ConfigError, match=r'predicted classes \[7\]'):
        count_pairs(good, bad, 4)
    with pytest.raises(ConfigError, match='the target has'):
        count_pairs(good, bad[:2], 4)
    for kind in (torch.uint8, torch.int16):
        with pytest.raises(DataError, match=r'labels \[4\] are not in 0..3'):
            count_pairs(torch.full((4, 4), 4, dtype=kind), good, 4)
    with pytest.raises(DataError, match='negative'):
        count_pairs(good.short() - 1, good, 4)


@pytest.mark.parametrize('kind', [torch.int32, torch.int64])
def test_large_numbers_are_refused_before_anything_of_their_size_is_made(monkeypatch, kind):
    """Their square would be 32 GB of counts."""
    monkeypatch.setattr(np, 'bincount', lambda *args, **options: pytest.fail('counted before it was checked'))
    good, bad = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=kind)
    bad[1, 1], bad[1, 2] = 65535, -2
    with pytest.raises(DataError, match=r'labels \[-2, 65535\] are not in 0..3 or ignore 255') as caught:
        count_pairs(bad, good, 4, where='a.png')
    assert caught.value.where == 'a.png'
    with pytest.raises(ConfigError, match=r'predicted classes \[-2, 65535\]'):
        count_pairs(good, bad, 4)


@pytest.mark.parametrize('count', [0, 8193, 10**6])
def test_a_number_of_classes_has_a_limit(count):
    with pytest.raises(ConfigError, match=f'= {count}'):
        MeanIoU(classes=[str(index) for index in range(count)]).evaluate(0)


def test_many_classes_and_wide_integers():
    target, labels = torch.randint(0, 400, (2, 50, 60), dtype=torch.int16)
    expected = np.zeros((400, 400), np.int64)
    np.add.at(expected, (target.numpy(), labels.numpy()), 1)
    expected[255] = 0  # 255 is the ignore value still
    assert np.array_equal(count_pairs(target, labels, 400), expected)
    small, wide = target.clamp(max=3).byte(), target.clamp(max=3)
    few = count_pairs(small, small, 300)  # bytes count 256 classes, and the others are not there
    assert few.shape == (300, 300) and few.sum() == small.numel() and not few[4:].any() and not few[:, 4:].any()
    assert np.array_equal(count_pairs(small, small, 4), count_pairs(small, wide, 4))


def test_counts_are_exact_where_float32_is_not(monkeypatch):
    monkeypatch.setattr(miou, 'STRIPE', 100)  # every path through the stripes, cheaply
    target, labels = next(_images(1))
    assert np.array_equal(count_pairs(target, labels, 4), _brute_force([(target, labels)], 4).numpy())
    monkeypatch.undo()
    assert miou.STRIPE < 2**24
    big = torch.zeros(1, 2**24 + 3, dtype=torch.uint8)
    assert count_pairs(big, big, 1).item() == 2**24 + 3


def test_saved_confusion_matrix(tmp_path):
    metric = MeanIoU(classes=NAMES, save_dir=tmp_path)
    _evaluate(metric, list(_images()))
    assert np.array_equal(np.load(tmp_path / 'confusion.npy'), metric.confusion.numpy())
    with open(tmp_path / 'confusion.csv', newline='') as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == NAMES and rows[1] == ['sky', *map(str, metric.confusion[0].tolist())]
    assert (tmp_path / 'confusion.png').read_bytes()[:4] == b'\x89PNG'


def test_built_and_run_by_the_evaluator_of_mmengine():
    from mmengine.evaluator import Evaluator

    evaluator = Evaluator([dict(type=MeanIoU), dict(type=MeanIoU, head='other')])
    evaluator.dataset_meta = {'classes': {'semantic': NAMES[:4]}}
    images = list(_images())
    for target, labels in images:
        evaluator.process(
            [{'sem': SemanticMap(labels), 'other': SemanticMap(torch.zeros_like(labels))}], _batch([target])
        )
    scores = evaluator.evaluate(3)
    assert scores.keys() == {
        f'{head}/{name}' for head in ('sem', 'other') for name in ('aAcc', 'mIoU', 'mAcc', 'mDice')
    }
    assert scores['sem/mIoU'] > scores['other/mIoU']
    assert all(type(value) is float and 0 <= value <= 1 for value in scores.values())


def _half(rank):
    images = list(_images())
    metric = MeanIoU(classes=NAMES[:4])
    for target, labels in images[rank::2]:
        metric.process(_batch([target]), [{'sem': SemanticMap(labels)}])
    first = metric.evaluate(3)
    if rank == 0:  # the other rank has no image this time, and no rank may hang
        metric.process(_batch([images[0][0]]), [{'sem': SemanticMap(images[0][1])}])
    return first, metric.evaluate(1)


def test_two_ranks_equal_one_process(run_ranks):
    outputs = run_ranks(_half)
    images = list(_images())
    alone = _evaluate(MeanIoU(classes=NAMES[:4]), images), _evaluate(MeanIoU(classes=NAMES[:4]), images[:1])
    assert outputs == [alone, alone]


def test_a_predicted_class_above_every_true_one_is_counted_in_wide_integers():
    target, labels = torch.tensor([[0, 1]], dtype=torch.int16), torch.tensor([[3, 1]], dtype=torch.int16)
    expected = np.zeros((4, 4), np.int64)
    expected[0, 3] = expected[1, 1] = 1
    assert np.array_equal(count_pairs(target, labels, 4), expected)
    assert np.array_equal(count_pairs(labels, target, 4), expected.T)
