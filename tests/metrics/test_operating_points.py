"""Score thresholds and temperatures, compared with what all candidates give and with pycocotools' matches."""

import numpy as np
import pytest

from vitdense.metrics.coco_columns import Objects
from vitdense.metrics.coco_curves import _Evaluation
from vitdense.metrics.operating_points import (
    best_f1,
    calibrated,
    calibration_error,
    describe_points,
    fit_temperature,
    match,
)


def f1_at(threshold, scores, hits, num_targets):
    chosen = scores >= threshold
    return 2 * hits[chosen].sum() / max(chosen.sum() + num_targets, 1)


@pytest.mark.parametrize('seed', range(5))
def test_no_other_threshold_has_a_larger_f1(seed):
    generator = np.random.default_rng(seed)
    scores, hits = generator.integers(1, 30, 60) / 30, generator.random(60) < 0.4  # equal scores occur
    point = best_f1(scores, hits, 40)
    best = max(f1_at(threshold, scores, hits, 40) for threshold in np.unique(scores))
    assert f1_at(point.threshold, scores, hits, 40) == pytest.approx(best) == pytest.approx(point.f1)
    chosen = scores >= point.threshold
    assert point.precision == pytest.approx(hits[chosen].mean())
    assert point.recall == pytest.approx(hits[chosen].sum() / 40)


def test_a_class_without_a_hit_has_no_threshold():
    assert best_f1(np.array([0.9]), np.array([False]), 3) is None
    assert best_f1(np.zeros(0), np.zeros(0, bool), 3) is None and best_f1(np.ones(1), np.ones(1, bool), 0) is None
    points = describe_points(np.array([0.8, 0.2]), np.array([True, False]), np.array([1, 1]), [2, 1])
    assert points['threshold'] == [None, 0.5] and points['precision'] == [None, 1.0] and points['recall'] == [None, 1.0]


def table(generator, count, images=6, *, scores, crowd=0.0):
    boxes = np.concatenate([generator.random((count, 2)) * 30, 15 + generator.random((count, 2)) * 20], axis=1)
    image = np.sort(generator.integers(images, size=count))
    values = generator.random(count) if scores else np.zeros(count)
    crowds = generator.random(count) < crowd
    return Objects(image, generator.integers(2, size=count), boxes, boxes[:, 2] * boxes[:, 3], crowds, values)


def test_hits_are_those_of_pycocotools():
    generator = np.random.default_rng(0)
    targets, predictions = table(generator, 40, scores=False, crowd=0.2), table(generator, 90, scores=True)
    hits, counted = match(targets, predictions)
    evaluation = _Evaluation(targets, predictions, 6, 2, 'bbox')
    evaluation.evaluate()
    ours, theirs = [], []
    for cell in filter(None, evaluation.evalImgs):
        if cell['aRng'] != evaluation.params.areaRng[0]:
            continue
        for number, matched, ignored in zip(cell['dtIds'], cell['dtMatches'][0], cell['dtIgnore'][0], strict=True):
            theirs.append((number - 1, matched > 0 and not ignored, not ignored))
            ours.append((number - 1, hits[number - 1], counted[number - 1]))
    assert len(ours) == 90 and hits.sum() > 10 and (~counted).sum() > 3
    assert ours == theirs


def test_a_temperature_brings_scores_nearer_to_the_share_of_hits():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=20_000)
    hits = generator.random(20_000) < 1 / (1 + np.exp(-logits))
    sharp = 1 / (1 + np.exp(-3 * logits))  # scores three times too sure
    temperature = fit_temperature(sharp, hits)
    assert temperature == pytest.approx(3, rel=0.05)
    assert calibration_error(sharp, hits) > 0.1 > 0.02 > calibration_error(calibrated(sharp, temperature), hits)
    assert fit_temperature(sharp, np.ones(20_000, bool)) == 1


def test_the_calibration_error_is_the_mean_gap_of_its_ranges():
    scores, hits = np.array([0.1, 0.11, 0.9, 0.95]), np.array([False, True, True, True])
    gaps = [abs((0.1 - 0) + (0.11 - 1)), abs(0.9 - 1), abs(0.95 - 1)]  # ranges of 1/15
    assert calibration_error(scores, hits) == pytest.approx(sum(gaps) / 4)


def test_a_temperature_that_does_not_lower_the_calibration_error_is_left_out():
    generator = np.random.default_rng(3)
    scores = np.round(generator.random(40), 2)
    hits = generator.random(40) < scores
    fitted = calibrated(scores, fit_temperature(scores, hits))
    assert calibration_error(fitted, hits) > calibration_error(scores, hits) + 0.03
    points = describe_points(scores, hits, np.zeros(40, int), [40])
    assert points['temperature'] == 1 and points['ece'][0] == points['ece'][1]
