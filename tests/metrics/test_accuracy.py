"""Accuracy, calibration and average precision against torchmetrics, over images, batches and ranks."""

import numpy as np
import pytest
import torch

from vitdense.errors import ConfigError
from vitdense.metrics.accuracy import Accuracy
from vitdense.metrics.multilabel import MeanPrecision
from vitdense.types import Batch, ImageClass, Meta, Target

NAMES = [f'kind {index}' for index in range(8)]


def images(count: int = 60, num_classes: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, num_classes, (count,), generator=generator)
    logits = torch.randn(count, num_classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits.softmax(1), labels


def fill(metric, scores, labels) -> None:
    targets = [Target(image_label=label) for label in labels]
    metas = [Meta(index, path=f'{index}.jpg') for index in range(len(targets))]
    metric.process(Batch(torch.empty(0), targets, metas), [{'cls': ImageClass(row)} for row in scores])


def evaluated(scores, labels, **arguments) -> tuple[Accuracy, dict[str, float]]:
    metric = Accuracy(classes=NAMES, **arguments)
    fill(metric, scores[:7], labels[:7])
    fill(metric, scores[7:], labels[7:])
    return metric, metric.evaluate(0)


def test_scores_are_those_of_torchmetrics():
    from torchmetrics.functional import classification as reference  # here: processes that this file starts need none

    scores, labels = images()
    metric, values = evaluated(scores, labels)
    for key, top_k, average in (('top1', 1, 'micro'), ('top5', 5, 'micro'), ('mean_class', 1, 'macro')):
        expected = reference.multiclass_accuracy(scores, labels, 8, average=average, top_k=top_k)
        assert values[f'cls/{key}'] == pytest.approx(float(expected), abs=1e-6)
    expected = reference.multiclass_calibration_error(scores, labels, 8, n_bins=15)
    assert values['cls/ece'] == pytest.approx(float(expected), abs=1e-5)
    assert values.keys() == {f'cls/{name}' for name in metric.names}
    assert torch.equal(metric.confusion, reference.multiclass_confusion_matrix(scores, labels, 8))
    per_class = reference.multiclass_accuracy(scores, labels, 8, average='none')
    assert [row.acc for row in metric.table()] == pytest.approx(per_class.tolist(), abs=1e-6)
    assert [row.images for row in metric.table()] == labels.bincount(minlength=8).tolist()


def test_calibration_by_hand():
    scores = torch.zeros(4, 8)
    scores[:, 0], scores[2:, 1] = torch.tensor([0.9, 0.9, 0.3, 0.3]), 0.1
    _, values = evaluated(scores, torch.tensor([0, 1, 0, 0]), bins=10)
    # two images at 0.9 of which one is right, two at 0.3 that are both right
    assert values['cls/ece'] == pytest.approx((2 * abs(0.9 - 0.5) + 2 * abs(0.3 - 1.0)) / 4, abs=1e-6)


def test_classes_that_do_not_occur_are_left_out_of_the_mean():
    scores = torch.eye(8)[[0, 1, 1]]
    metric, values = evaluated(scores, torch.tensor([0, 0, 1]))
    assert values['cls/mean_class'] == pytest.approx((0.5 + 1) / 2)
    assert metric.table()[5].acc is None


def test_five_of_five_is_no_news():
    metric = Accuracy(classes=NAMES[:4])
    fill(metric, torch.eye(4), torch.arange(4))
    assert metric.evaluate(0).keys() == {'cls/top1', 'cls/mean_class', 'cls/ece'}


def test_images_without_target_are_skipped_and_mixtures_count_as_their_largest(caplog):
    scores = torch.eye(8)[[0, 1, 2]]
    metric = Accuracy(classes=NAMES)
    fill(metric, scores, [None, torch.tensor([0.3, 0.6, 0.1, 0, 0, 0, 0, 0]), torch.tensor(2)])
    assert metric.evaluate(0)['cls/top1'] == 1
    assert 'skipped without target: 1 of' in caplog.text
    caplog.clear()
    fill(metric, scores[:1], [None])
    assert metric.evaluate(0) == {} and 'skipped without target: 1 of' in caplog.text
    caplog.clear()
    metric.evaluate(0)
    assert 'skipped' not in caplog.text


def test_labels_and_scores_that_do_not_fit_are_named():
    metric = Accuracy(classes=NAMES)
    with pytest.raises(ConfigError, match='label 8 is not in 0..7'):
        fill(metric, torch.eye(8)[:1], [torch.tensor(8)])
    with pytest.raises(ConfigError, match='3 scores and the data set has 8 classes'):
        fill(metric, torch.eye(3)[:1], [torch.tensor(1)])
    with pytest.raises(ConfigError, match='several classes') as caught:
        fill(metric, torch.eye(8)[:1], [torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0])])
    assert 'MeanPrecision' in caught.value.fix
    with pytest.raises(ConfigError, match="does not know the classes of 'image_label'"):
        Accuracy().evaluate(0)


def test_a_long_table_lists_the_worst_classes(caplog):
    metric = Accuracy(classes=[str(index) for index in range(300)])
    labels = torch.arange(200)
    scores = torch.eye(300)[labels]
    scores[:10] = scores[:10].flip(0)  # the first ten are wrong
    with caplog.at_level('INFO', 'vitdense'):
        fill(metric, scores, labels)
        metric.evaluate(0)
    assert [row.acc for row in metric.table()] == [0.0] * 10 + [1.0] * 20
    assert 'the 30 classes that are least often right' in caplog.text
    fill(metric, scores[:20], labels[:20])
    metric.evaluate(0)
    assert len(metric.table()) == 20


@pytest.mark.parametrize(
    ('num_classes', 'occur', 'listed'), [(100, 50, 100), (120, 50, 50), (120, 100, 100), (101, 101, 30)]
)
def test_tables_are_long_beyond_a_hundred_classes(num_classes, occur, listed, caplog):
    metric = Accuracy(classes=[str(index) for index in range(num_classes)])
    with caplog.at_level('INFO', 'vitdense'):
        fill(metric, torch.eye(num_classes)[:occur], torch.arange(occur))
        metric.evaluate(0)
    assert len(metric.table()) == listed and ('least often right' in caplog.text) == (occur > 100)


def test_the_confusion_matrix_is_saved_and_drawn(tmp_path):
    metric, _ = evaluated(*images(), save_dir=tmp_path)
    assert np.array_equal(np.load(tmp_path / 'confusion_cls.npy'), metric.confusion.numpy())
    assert (tmp_path / 'confusion_cls.csv').read_text().startswith('target / prediction,kind 0')
    assert (tmp_path / 'confusion_cls.png').read_bytes()[:4] == b'\x89PNG'


def _several(scores: torch.Tensor) -> torch.Tensor:
    return (scores + 0.3 * torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) > 0.35).float()


def _rank(rank: int):
    scores, labels = images()
    part = slice(0, 23) if rank == 0 else slice(23, None)
    accuracy, precision = Accuracy(classes=NAMES), MeanPrecision()
    fill(accuracy, scores[part], labels[part])
    fill(precision, scores[part], _several(scores)[part])
    return accuracy.evaluate(0), precision.evaluate(0)


def test_ranks_count_together(run_ranks):
    scores, labels = images()
    _, expected = evaluated(scores, labels)
    precision = MeanPrecision()
    fill(precision, scores, _several(scores))
    together = precision.evaluate(0)
    for accuracies, precisions in run_ranks(_rank):
        assert accuracies == pytest.approx(expected, abs=1e-9) and precisions == together


def test_average_precision_is_that_of_torchmetrics():
    from torchmetrics.functional.classification import multilabel_average_precision

    scores, _ = images()
    scores = (scores * 20).round() / 20  # many ties
    targets = _several(scores)
    targets[:, 3] = 0  # a class that no image has
    metric = MeanPrecision()
    fill(metric, scores, targets)
    value = metric.evaluate(0)['cls/mAP']
    there = torch.arange(8) != 3
    expected = multilabel_average_precision(scores[:, there], targets[:, there].long(), 7, average='none')
    assert metric.table()[3].ap is None
    assert [row.ap for row in metric.table() if row.ap is not None] == pytest.approx(expected.tolist(), abs=1e-6)
    assert value == pytest.approx(float(expected.mean()), abs=1e-6)
    assert [row.images for row in metric.table()] == targets.sum(0).tolist()
    empty = MeanPrecision()
    assert empty.evaluate(0) == {} and empty.table() == []


def test_the_fifth_best_counts_and_the_sixth_does_not():
    scores = torch.linspace(1, 0, 8).expand(2, 8)  # best first
    _, values = evaluated(scores, torch.tensor([4, 5]))
    assert values['cls/top5'] == 0.5


def test_labels_of_precision_are_one_class_or_shares_above_a_half():
    scores = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.7, 0.6], [0.1, 0.6, 0.3]])
    metric = MeanPrecision()
    fill(metric, scores, [torch.tensor(0), torch.tensor([0.5, 0.51, 0.0]), torch.tensor(2)])
    metric.evaluate(0)
    assert [(row.name, row.ap, row.images) for row in metric.table()] == [
        ('class 0', 1.0, 1),
        ('class 1', 1.0, 1),
        ('class 2', 0.5, 1),
    ]


@pytest.mark.parametrize(('num_classes', 'there'), [(5, False), (6, True)])
def test_six_classes_have_a_best_five(num_classes, there):
    metric = Accuracy(classes=NAMES[:num_classes])
    fill(metric, torch.eye(num_classes), torch.arange(num_classes))
    assert ('cls/top5' in metric.evaluate(0)) == there


def test_a_score_on_the_border_of_two_ranges_belongs_to_the_lower_one():
    scores = torch.zeros(4, 8)
    scores[:, 0] = torch.tensor([0.25, 0.125, 0.3125, 0.5])
    _, values = evaluated(scores, torch.tensor([0, 1, 0, 0]), bins=4)
    # 0 ... 0.25: scores add up to 0.375 and one is right; 0.25 ... 0.5: 0.8125 and two are right
    assert values['cls/ece'] == pytest.approx((abs(0.375 - 1) + abs(0.8125 - 2)) / 4, abs=1e-6)


def test_before_an_evaluation_there_is_no_confusion(tmp_path):
    with pytest.raises(RuntimeError, match='before the first'):
        _ = Accuracy(classes=NAMES).confusion
    metric, _ = evaluated(*images())
    metric.save_confusion(tmp_path, stem='other')
    assert (tmp_path / 'other.npy').exists()
