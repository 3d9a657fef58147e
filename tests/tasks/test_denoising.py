"""Denoising: groups of noised objects that an image of its own truth can be read from."""

import pytest
import torch

from vitdense.errors import ConfigError
from vitdense.ops.boxes import iou, to_xyxy
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.matching import Truth

COUNTS = (3, 0, 5)


@pytest.fixture
def truth() -> Truth:
    images = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    boxes = torch.cat([0.4 + 0.2 * torch.rand(8, 2), 0.1 + 0.2 * torch.rand(8, 2)], dim=-1)
    return Truth(torch.arange(8), boxes, images, torch.zeros(8, dtype=torch.bool), COUNTS)


def test_groups_hold_every_object_twice(truth):
    hints = Denoising(num_queries=20)(truth, num_classes=8)
    assert hints.groups == 4 and hints.labels.shape == (3, 4 * 2 * 5) and hints.boxes.shape == (3, 40, 4)
    objects, positive = hints.objects.view(3, 4, 2, 5), hints.positive.view(3, 4, 2, 5)
    assert objects[0, 2].tolist() == [[0, 1, 2, -1, -1]] * 2 and (objects[1] == -1).all()
    assert positive[0, 3].tolist() == [[True, True, True, False, False], [False] * 5]
    assert hints.positive.sum() == 4 * 8


def test_without_noise_positives_are_the_objects(truth):
    hints = Denoising(num_queries=5, label_noise=0, box_noise=0)(truth, num_classes=8)
    rows = (hints.objects + truth.starts[:, None])[hints.positive]
    assert torch.equal(hints.labels[hints.positive], truth.labels[rows])
    assert torch.allclose(hints.boxes[hints.positive], truth.boxes[rows])
    filler = hints.objects < 0
    assert (hints.boxes[filler] == 0.5).all() and (hints.labels[filler] == 0).all()


def test_a_share_of_zero_changes_no_label(truth, monkeypatch):
    monkeypatch.setattr(torch, 'rand', lambda shape, device=None: torch.zeros(shape))
    hints = Denoising(label_noise=0)(truth._replace(labels=truth.labels + 100), num_classes=8)
    assert (hints.labels[hints.positive] >= 100).all()


def test_defaults_are_those_of_dino():
    assert Denoising() == Denoising(num_queries=100, label_noise=0.5, box_noise=1.0, contrastive=True)


def test_boxes_move_by_up_to_half_a_side_and_contrasts_further(truth):
    hints = Denoising(num_queries=500)(truth, num_classes=8)
    real = hints.objects >= 0
    rows = (hints.objects + truth.starts[:, None])[real]
    moved = (to_xyxy(hints.boxes[real]) - to_xyxy(truth.boxes[rows])).abs() / truth.boxes[rows][:, 2:].repeat(1, 2)
    positive = hints.positive[real]
    assert moved[positive].max() < 0.5 and moved[positive].mean() == pytest.approx(0.25, abs=0.01)
    noised = iou(to_xyxy(hints.boxes[real]), to_xyxy(truth.boxes[rows]))
    assert noised[positive].mean() > 0.3 > 0.15 > noised[~positive].mean()


def test_labels_change_with_half_the_rate(truth):
    hints = Denoising(num_queries=2000, label_noise=0.5)(truth, num_classes=1000)
    rows = (hints.objects + truth.starts[:, None])[hints.positive]
    changed = (hints.labels[hints.positive] != truth.labels[rows]).float().mean().item()
    assert changed == pytest.approx(0.25, abs=0.03)


def test_every_number_is_in_range(truth):
    edge = truth._replace(boxes=torch.tensor([0.0, 1.0, 1e-4, 1.0]).expand(8, 4))
    hints = Denoising()(edge, num_classes=8)
    assert ((hints.boxes >= 0) & (hints.boxes <= 1)).all() and (hints.boxes[..., 2:] > 0).all()
    assert ((hints.labels >= 0) & (hints.labels < 8)).all()


def test_a_batch_without_objects_is_filler():
    nothing = torch.zeros(0, dtype=torch.int64)
    hints = Denoising()(Truth(nothing, torch.zeros(0, 4), nothing, nothing.bool(), (0, 0)), num_classes=3)
    assert hints.labels.shape == (2, 2) and (hints.objects == -1).all() and not hints.positive.any()


def test_crowds_are_filler(truth):
    hints = Denoising()(truth._replace(crowd=torch.arange(8) == 1), num_classes=8)
    assert set(hints.objects[0].tolist()) == {0, 2, -1}


def test_without_contrast_there_are_only_positives(truth):
    hints = Denoising(num_queries=10, contrastive=False)(truth, num_classes=8)
    assert hints.labels.shape == (3, 2 * 5) and torch.equal(hints.positive, hints.objects >= 0)


def test_wrong_arguments_are_errors_now():
    for wrong in ({'num_queries': 0}, {'label_noise': 3}, {'box_noise': -1}):
        with pytest.raises(ConfigError):
            Denoising(**wrong)
