"""Matching: transformers' assignments, never across images, and no number that can crash it."""

import pytest
import torch
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher as DetrMatcher
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher

from vitdense.errors import ConfigError, NumericsError
from vitdense.tasks import matching
from vitdense.tasks.matching import NO_OBJECT, HungarianMatcher, LayerPredictions, ObjectTargets
from vitdense.types import QueryOutputs, Target

COUNTS = (3, 0, 7, 1)


def boxes_cxcywh(*shape):
    return torch.cat([torch.rand(*shape, 2), 0.05 + 0.4 * torch.rand(*shape, 2)], dim=-1)


def targets_of(counts=COUNTS, num_classes=5):
    total = sum(counts)
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = torch.randint(num_classes, (total,))
    return ObjectTargets(labels, boxes_cxcywh(total), images, torch.zeros(total, dtype=torch.bool), counts)


def outputs_of(num_layers=1, num_queries=12, num_classes=5, groups=1, batch=4):
    shape = (num_layers, batch, num_queries)
    return LayerPredictions(torch.randn(*shape, num_classes), boxes_cxcywh(*shape), groups)


def theirs(matcher, outputs, object_targets, *more):
    """Run a matcher of transformers on the last layer; return (B, Q) rows of the objects as ours gives them."""
    per_image = zip(
        object_targets.labels.split(object_targets.counts),
        object_targets.boxes.split(object_targets.counts),
        strict=True,
    )
    targets = [{'class_labels': labels, 'boxes': boxes} for labels, boxes in per_image]
    actual = matcher({'logits': outputs.logits[-1], 'pred_boxes': outputs.boxes[-1]}, targets, *more)
    rows = torch.full(outputs.boxes.shape[1:3], NO_OBJECT)
    for image, (queries, objects) in enumerate(actual):
        rows[image, queries] = objects + object_targets.starts[image]
    return rows


def test_assignment_equals_transformers_deformable_detr():
    outputs, object_targets = outputs_of(), targets_of()
    (ours,) = HungarianMatcher()([outputs], object_targets)
    assert torch.equal(ours[0], theirs(DeformableDetrHungarianMatcher(2, 5, 2), outputs, object_targets))


def test_assignment_equals_transformers_detr():
    outputs, object_targets = outputs_of(num_classes=6), targets_of()
    (ours,) = HungarianMatcher(class_weight=1, form='softmax')([outputs], object_targets)
    assert torch.equal(ours[0], theirs(DetrMatcher(1, 5, 2), outputs, object_targets))


def test_every_group_is_assigned_by_itself_as_transformers_does():
    outputs, object_targets = outputs_of(num_queries=30, groups=3), targets_of()
    (ours,) = HungarianMatcher()([outputs], object_targets)
    assert torch.equal(ours[0], theirs(LwDetrHungarianMatcher(2, 5, 2), outputs, object_targets, 3))
    assert (ours[0, 0].view(3, 10) >= 0).sum(1).tolist() == [3, 3, 3]


def test_layers_and_decoders_together_are_as_each_alone():
    queries, proposals, object_targets = (
        outputs_of(num_layers=3),
        outputs_of(num_queries=40, num_classes=1),
        targets_of(),
    )
    matcher = HungarianMatcher()
    together = matcher([queries, proposals], object_targets)
    alone = [
        matcher([LayerPredictions(*(part[None] for part in pair))], object_targets)[0]
        for pair in zip(*queries[:2], strict=True)
    ]
    assert torch.equal(together[0], torch.cat(alone))
    assert torch.equal(together[1], matcher([proposals], object_targets)[0])


def test_all_costs_come_to_the_cpu_at_once(monkeypatch):
    calls = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: calls.append(tuple(self.shape)) or cpu(self))
    HungarianMatcher()([outputs_of(num_layers=2), outputs_of(num_queries=20)], targets_of())
    assert calls == [(sum(COUNTS) * (2 * 12 + 20),)]  # no cost between an object and a query of another image


def test_a_duplicate_never_matches_too():
    object_targets = targets_of((1,))
    logits, boxes = torch.zeros(1, 1, 4, 5), object_targets.boxes.expand(1, 1, 4, 4)
    (rows,) = HungarianMatcher()([LayerPredictions(logits, boxes)], object_targets)
    assert (rows >= 0).sum() == 1


def test_two_equal_objects_have_two_queries():
    one = targets_of((1,))
    object_targets = ObjectTargets(*(torch.cat([field] * 2) for field in one[:4]), (2,))
    (rows,) = HungarianMatcher()([outputs_of(batch=1)], object_targets)
    assert sorted(rows[rows >= 0].tolist()) == [0, 1]


def test_copies_give_every_object_several_queries():
    outputs, object_targets = outputs_of(num_queries=40), targets_of()
    (rows,) = HungarianMatcher()([outputs], object_targets, [4])
    assert rows[rows >= 0].bincount().tolist() == [4] * len(object_targets.labels)
    (once,) = HungarianMatcher()([outputs], object_targets)
    assert (rows[once >= 0] >= 0).all()  # the best one is among the several


def test_more_objects_than_queries():
    (rows,) = HungarianMatcher()([outputs_of(num_queries=4)], targets_of())
    assert (rows[0] >= 0).sum(1).tolist() == [3, 0, 4, 1]


def test_crowds_are_not_assigned():
    object_targets = targets_of()
    crowd = torch.zeros(len(object_targets.labels), dtype=torch.bool)
    crowd[[0, 1, 2, 5]] = True
    (rows,) = HungarianMatcher()([outputs_of()], object_targets._replace(crowd=crowd))
    assert sorted(rows[rows >= 0].tolist()) == [3, 4, 6, 7, 8, 9, 10]


def test_the_image_decides_which_queries_are_candidates():
    object_targets = targets_of((1, 1))
    boxes = object_targets.boxes.flip(0)[:, None].repeat(1, 3, 1)  # every image predicts what the other one holds
    (rows,) = HungarianMatcher()([LayerPredictions(torch.zeros(1, 2, 3, 5), boxes[None])], object_targets)
    assert [sorted(row.tolist()) for row in rows[0]] == [[-1, -1, 0], [-1, -1, 1]]


@pytest.mark.parametrize('poison', [float('nan'), float('inf'), -float('inf')])
def test_a_query_that_is_not_finite_is_taken_last(poison):
    outputs, object_targets = outputs_of(), targets_of()
    outputs.logits[0, 0, 4] = outputs.boxes[0, 2, 6] = poison
    (rows,) = HungarianMatcher()([outputs], object_targets)
    assert rows[0, 0, 4] == rows[0, 2, 6] == NO_OBJECT
    assert (rows[0] >= 0).sum(1).tolist() == list(COUNTS)


def test_a_image_that_is_not_finite_does_not_disturb_the_others():
    outputs, object_targets = outputs_of(), targets_of()
    (before,) = HungarianMatcher()([outputs], object_targets)
    outputs.logits[:, 0] = float('nan')
    (rows,) = HungarianMatcher()([outputs], object_targets)
    assert torch.equal(rows[0, 1:], before[0, 1:]) and (rows[0, 0] >= 0).sum() == 3


def test_when_nothing_is_finite_the_error_says_what_diverged():
    outputs = outputs_of(num_layers=2)
    outputs.logits[1] = float('nan')
    with pytest.raises(NumericsError) as caught:
        HungarianMatcher()([outputs], targets_of())
    assert 'queries, layer 2 of 2' in caught.value.message
    assert caught.value.where == 'class logits 100% not finite, boxes 0% not finite'
    assert caught.value.fix


def test_huge_boxes_do_not_spoil_the_others():
    outputs, object_targets = outputs_of(), targets_of()
    (before,) = HungarianMatcher()([outputs], object_targets)
    outputs.boxes[:, :, -1] = torch.where(before[:, :, -1:] >= 0, outputs.boxes[:, :, -1], 1e30)
    (rows,) = HungarianMatcher()([outputs], object_targets)
    assert torch.equal(rows, before)


def test_targets_are_in_shares_of_each_images_region():
    targets = [
        Target(boxes=torch.tensor([[10.0, 20, 30, 60]]), labels=torch.tensor([2])),
        Target(),
        Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)),
        Target(boxes=torch.tensor([[0.0, 0, 8, 8]]), labels=torch.tensor([1]), iscrowd=torch.tensor([True])),
    ]
    object_targets = ObjectTargets.of(targets, torch.tensor([[80.0, 40.0], [1, 1], [1, 1], [16, 32]]))
    assert torch.allclose(object_targets.boxes, torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.125, 0.25, 0.25, 0.5]]))
    assert (
        object_targets.counts == (1, 0, 0, 1)
        and object_targets.images.tolist() == [0, 3]
        and object_targets.starts.tolist() == [0, 1, 1, 1]
    )
    assert object_targets.crowd.tolist() == [False, True]


def test_predictions_are_the_layers_in_order():
    layers = [QueryOutputs(torch.full((1, 2, 3), float(i)), torch.zeros(1, 2, 4)) for i in range(3)]
    outputs = LayerPredictions.of(layers[2]._replace(aux=tuple(layers[:2]), groups=2))
    assert outputs.logits[:, 0, 0, 0].tolist() == [0, 1, 2] and outputs.groups == 2


def test_wrong_arguments_are_errors_now():
    for wrong in ({'form': 'tanh'}, {'l1_weight': -1}, {'alpha': 2}):
        with pytest.raises(ConfigError):
            HungarianMatcher(**wrong)


def test_defaults_are_those_of_deformable_detr():
    wanted = HungarianMatcher(class_weight=2.0, l1_weight=5.0, giou_weight=2.0, form='sigmoid', alpha=0.25, gamma=2.0)
    assert HungarianMatcher() == wanted


@pytest.mark.parametrize(
    ('queries', 'values', 'objects'),
    [(12, 24, [2, 2, 2, 2, 2, 1]), (12, 1, [1] * 11), (1, 4, [4, 4, 3]), (12, 10**6, [11])],
)
def test_costs_are_computed_for_a_few_objects_at_a_time(queries, values, objects, monkeypatch):
    outputs, object_targets, recorded = outputs_of(num_queries=queries), targets_of(), []
    together = HungarianMatcher().costs(outputs, object_targets)
    monkeypatch.setattr(matching, '_AT_A_TIME', (values, 10**9))  # on a CPU, elsewhere
    plain = HungarianMatcher._class_costs
    monkeypatch.setattr(
        HungarianMatcher,
        '_class_costs',
        lambda self, some, mass: recorded.append(some.shape[1]) or plain(self, some, mass),
    )
    assert torch.allclose(HungarianMatcher().costs(outputs, object_targets), together) and recorded == objects
