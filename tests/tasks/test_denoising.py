"""Denoising: groups of noised objects, from which the targets can be recovered."""

import pytest
import torch

from vitdense.errors import ConfigError
from vitdense.ops.boxes import iou, to_xyxy
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.matching import ObjectTargets

COUNTS = (3, 0, 5)


@pytest.fixture
def targets() -> ObjectTargets:
    images = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    boxes = torch.cat([0.4 + 0.2 * torch.rand(8, 2), 0.1 + 0.2 * torch.rand(8, 2)], dim=-1)
    return ObjectTargets(torch.arange(8), boxes, images, torch.zeros(8, dtype=torch.bool), COUNTS)


def test_groups_hold_every_object_twice(targets):
    queries = Denoising(num_queries=20)(targets, num_classes=8)
    assert queries.groups == 4 and queries.labels.shape == (3, 4 * 2 * 5) and queries.boxes.shape == (3, 40, 4)
    objects, positive = queries.objects.view(3, 4, 2, 5), queries.positive.view(3, 4, 2, 5)
    assert objects[0, 2].tolist() == [[0, 1, 2, -1, -1]] * 2 and (objects[1] == -1).all()
    assert positive[0, 3].tolist() == [[True, True, True, False, False], [False] * 5]
    assert queries.positive.sum() == 4 * 8


def test_without_noise_positives_are_the_objects(targets):
    queries = Denoising(num_queries=5, label_noise=0, box_noise=0)(targets, num_classes=8)
    rows = (queries.objects + targets.starts[:, None])[queries.positive]
    assert torch.equal(queries.labels[queries.positive], targets.labels[rows])
    assert torch.allclose(queries.boxes[queries.positive], targets.boxes[rows])
    filler = queries.objects < 0
    assert (queries.boxes[filler] == 0.5).all() and (queries.labels[filler] == 0).all()


def test_a_share_of_zero_changes_no_label(targets, monkeypatch):
    monkeypatch.setattr(torch, 'rand', lambda shape, device=None: torch.zeros(shape))
    queries = Denoising(label_noise=0)(targets._replace(labels=targets.labels + 100), num_classes=8)
    assert (queries.labels[queries.positive] >= 100).all()


def test_defaults_are_those_of_dino():
    assert Denoising() == Denoising(num_queries=100, label_noise=0.5, box_noise=1.0, contrastive=True)


def test_boxes_move_by_up_to_half_a_side_and_contrasts_further(targets):
    queries = Denoising(num_queries=500)(targets, num_classes=8)
    real = queries.objects >= 0
    rows = (queries.objects + targets.starts[:, None])[real]
    moved = (to_xyxy(queries.boxes[real]) - to_xyxy(targets.boxes[rows])).abs() / targets.boxes[rows][:, 2:].repeat(
        1, 2
    )
    positive = queries.positive[real]
    assert moved[positive].max() < 0.5 and moved[positive].mean() == pytest.approx(0.25, abs=0.01)
    noised = iou(to_xyxy(queries.boxes[real]), to_xyxy(targets.boxes[rows]))
    assert noised[positive].mean() > 0.3 > 0.15 > noised[~positive].mean()


def test_labels_change_with_half_the_rate(targets):
    queries = Denoising(num_queries=2000, label_noise=0.5)(targets, num_classes=1000)
    rows = (queries.objects + targets.starts[:, None])[queries.positive]
    changed = (queries.labels[queries.positive] != targets.labels[rows]).float().mean().item()
    assert changed == pytest.approx(0.25, abs=0.03)


def test_every_number_is_in_range(targets):
    edge = targets._replace(boxes=torch.tensor([0.0, 1.0, 1e-4, 1.0]).expand(8, 4))
    queries = Denoising()(edge, num_classes=8)
    assert ((queries.boxes >= 0) & (queries.boxes <= 1)).all() and (queries.boxes[..., 2:] > 0).all()
    assert ((queries.labels >= 0) & (queries.labels < 8)).all()


def test_a_batch_without_objects_is_filler():
    empty = torch.zeros(0, dtype=torch.int64)
    queries = Denoising()(ObjectTargets(empty, torch.zeros(0, 4), empty, empty.bool(), (0, 0)), num_classes=3)
    assert queries.labels.shape == (2, 2) and (queries.objects == -1).all() and not queries.positive.any()


def test_crowds_are_filler(targets):
    queries = Denoising()(targets._replace(crowd=torch.arange(8) == 1), num_classes=8)
    assert set(queries.objects[0].tolist()) == {0, 2, -1}


def test_without_contrast_there_are_only_positives(targets):
    queries = Denoising(num_queries=10, contrastive=False)(targets, num_classes=8)
    assert queries.labels.shape == (3, 2 * 5) and torch.equal(queries.positive, queries.objects >= 0)


def test_wrong_arguments_are_errors_now():
    for wrong in ({'num_queries': 0}, {'label_noise': 3}, {'box_noise': -1}):
        with pytest.raises(ConfigError):
            Denoising(**wrong)
