"""Properties of matching and metrics: brute force over permutations and pixels, pycocotools, invariance of order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.metrics.test_average_precision import annotations_of, by_pycocotools, evaluate, random_images
from tests.metrics.test_average_precision import results as results_of_images
from tests.properties.settings import EXAMPLES, few, generator, seeds
from vitdense.metrics.accuracy import Accuracy
from vitdense.metrics.average_precision import in_order
from vitdense.metrics.miou import MeanIoU, count_pairs
from vitdense.tasks.matching import NO_OBJECT, HungarianMatcher, LayerPredictions, ObjectTargets
from vitdense.types import IGNORE, Batch, ImageClass, Meta, QueryOutputs, SemanticMap, Target


def objects(seed: int, counts: list[int], crowds: float = 0.0) -> ObjectTargets:
    random, targets = generator(seed), []
    for count in counts:
        start, length = torch.rand(count, 2, generator=random) * 50, torch.rand(count, 2, generator=random) * 40 + 2
        labels = torch.randint(0, 3, (count,), generator=random)
        crowd = torch.rand(count, generator=random) < crowds
        targets.append(Target(boxes=torch.cat([start, start + length], 1), labels=labels, iscrowd=crowd))
    return ObjectTargets.of(targets, torch.full((len(counts), 2), 100.0))


def queries(seed: int, images: int, count: int) -> LayerPredictions:
    random = generator(seed + 1)
    logits = torch.randn(images, count, 3, generator=random)
    boxes = torch.rand(images, count, 4, generator=random) * 0.4 + 0.1
    return LayerPredictions.of(QueryOutputs(logits, boxes))


@few
@given(
    seeds,
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from(['sigmoid', 'softmax']),
)
def test_the_assignment_is_the_cheapest_of_all(seed, counts, num_queries, form):
    matcher, targets = HungarianMatcher(form=form), objects(seed, counts)
    predictions = queries(seed, len(counts), num_queries)
    (actual,) = matcher([predictions], targets)
    costs = matcher.costs(predictions, targets)[0].T  # (M, Q) -> (Q, M)
    for image, (start, count) in enumerate(zip(targets.starts.tolist(), counts, strict=True)):
        rows = actual[0, image].tolist()
        used = [row for row in rows if row != NO_OBJECT]
        assert len(used) == len(set(used)) == min(count, num_queries)
        assert all(start <= row < start + count for row in used)
        total = sum(costs[query, row].item() for query, row in enumerate(rows) if row != NO_OBJECT)
        small, large = sorted((count, num_queries))
        best = min(
            (
                sum(
                    costs[(q, start + o) if count <= num_queries else (o, start + q)].item()
                    for o, q in enumerate(order)
                )
                for order in permutations(range(large), small)
            ),
            default=0.0,
        )
        assert total == pytest.approx(best, abs=1e-4)


@few
@given(seeds, st.integers(1, 4), st.data())
def test_crowds_and_what_is_not_finite_are_not_taken_first(seed, count, data):
    targets = objects(seed, [count], crowds=0.5)
    predictions = queries(seed, 1, count + 2)
    bad = data.draw(st.integers(0, count + 1))
    predictions.logits[0, 0, bad] = data.draw(st.sampled_from([float('nan'), float('inf')]))
    predictions.boxes[0, 0, bad] = float('nan')
    (actual,) = HungarianMatcher()([predictions], targets)
    used = [row for row in actual[0, 0].tolist() if row >= 0]
    assert sorted(used) == torch.nonzero(~targets.crowd).flatten().tolist()
    assert actual[0, 0, bad] == NO_OBJECT


def label_maps(seed: int, count: int, classes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = generator(seed)
    targets = torch.randint(0, classes, (count, 5, 7), generator=random, dtype=torch.uint8)
    labels = torch.randint(0, classes, (count, 5, 7), generator=random, dtype=torch.uint8)
    targets[torch.rand(count, 5, 7, generator=random) < 0.2] = IGNORE
    return list(zip(targets, labels, strict=True))


def miou(pairs: list[tuple[torch.Tensor, torch.Tensor]], classes: int, batch: int) -> tuple[MeanIoU, dict[str, float]]:
    metric = MeanIoU(classes=[f'c{k}' for k in range(classes)])
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        targets, metas = [Target(semantic=target) for target, _ in part], [Meta(k) for k in range(len(part))]
        metric.process(Batch(torch.empty(0), targets, metas), [{'sem': SemanticMap(labels)} for _, labels in part])
    return metric, metric.evaluate(len(pairs))


@few
@given(seeds, st.integers(1, 4), st.integers(2, 6), st.integers(1, 4))
def test_counts_of_pixels_are_those_of_a_loop_in_any_order_and_batch(seed, count, classes, batch):
    pairs = label_maps(seed, count, classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for target, labels in pairs:
        for true, actual in zip(target.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if true != IGNORE:
                confusion[true, actual] += 1
    metric, scores = miou(pairs, classes, batch)
    assert torch.equal(metric.confusion, confusion)
    assert miou(pairs[::-1], classes, 1)[1] == scores
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    there = union > 0
    assert scores['sem/mIoU'] == pytest.approx((confusion.diagonal()[there] / union[there]).mean().item(), abs=1e-6)


@few
@given(seeds, st.integers(1, 300))
def test_counts_of_pairs_are_those_of_numpy(seed, classes):
    targets, labels = np.random.default_rng(seed).integers(0, classes, (2, 5, 8))
    expected = np.zeros((classes, classes), np.int64)
    np.add.at(expected, (targets[targets != IGNORE], labels[targets != IGNORE]), 1)
    for kind in (np.int64, np.uint8) if classes < IGNORE else (np.int64,):
        maps = [torch.from_numpy(values.astype(kind)) for values in (targets, labels)]
        assert np.array_equal(count_pairs(*maps, classes), expected)


@few
@given(seeds, st.integers(1, 12), st.integers(2, 7), st.integers(1, 5))
def test_accuracy_is_the_share_of_right_images(seed, count, classes, batch):
    random = generator(seed)
    scores = torch.rand(count, classes, generator=random)
    scores = scores / scores.sum(1, keepdim=True)
    labels = torch.randint(0, classes, (count,), generator=random)
    metric = Accuracy(classes=[f'c{k}' for k in range(classes)])
    for start in range(0, count, batch):
        part = range(start, min(start + batch, count))
        targets, metas = [Target(image_label=labels[k]) for k in part], [Meta(k) for k in part]
        metric.process(Batch(torch.empty(0), targets, metas), [{'cls': ImageClass(scores[k])} for k in part])
    values = metric.evaluate(count)
    assert values['cls/top1'] == pytest.approx((scores.argmax(1) == labels).double().mean().item(), abs=1e-6)
    assert 0 <= values['cls/ece'] <= 1


@settings(few, max_examples=EXAMPLES // 5)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_average_precision_is_that_of_pycocotools(seed, count):
    images = list(random_images(count, seed))
    _, scores = evaluate(images)
    assert evaluate(images[::-1])[1] == pytest.approx(scores, nan_ok=True)
    reference = by_pycocotools(annotations_of(images), results_of_images(images))
    for name, value in zip(('AP', 'AP50', 'AP75'), reference.stats.tolist(), strict=False):
        assert scores.get(f'det/{name}', -1) == value  # -1: there is no object, and the scores have no AP


@few
@given(st.lists(st.lists(st.integers(0, 50) | st.text(max_size=2), max_size=4), min_size=1, max_size=4))
def test_images_of_all_ranks_are_put_in_one_order(names):
    flat = [name for part in names for name in part]
    assume(len(set(map(str, flat))) == len(flat))
    keys = [[('data', name) for name in part] for part in names]
    locations = in_order(keys)
    assert [len(part) for part in locations] == [len(part) for part in keys]
    assert sorted(np.concatenate(locations).tolist()) == list(range(len(flat)))
    ordered = dict(zip(np.concatenate(locations).tolist(), flat, strict=True))
    turned = in_order(keys[::-1])
    backwards = [name for part in names[::-1] for name in part]
    assert ordered == dict(zip(np.concatenate(turned).tolist(), backwards, strict=True))  # whichever rank has them
