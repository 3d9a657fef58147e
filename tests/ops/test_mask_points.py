"""Masks at points, boxes around masks, and labels from masks: torch's and pycocotools' own results."""

import pytest
import torch
from pycocotools import mask as coco
from torch.nn import functional

from vitdense.ops import mask_labels
from vitdense.ops.mask_labels import class_scores, labels_of_masks, resize_masks
from vitdense.ops.masks import boxes_of_masks, runs_of_masks, sample_points


def test_points_are_those_of_grid_sample() -> None:
    channels, points = torch.randn(3, 5, 7), torch.rand(3, 40, 2)
    wanted = functional.grid_sample(channels[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
    locations, extents = points * torch.tensor([7.0, 5.0]), torch.tensor([5.0, 7.0])
    assert torch.allclose(sample_points(channels, locations, extents), wanted, atol=1e-6)
    shared = sample_points(channels, locations[0], extents)
    assert torch.equal(shared[0], sample_points(channels, locations, extents)[0]) and shared.shape == (3, 40)
    assert torch.equal(
        sample_points(channels > 0, locations, extents), sample_points((channels > 0).float(), locations, extents)
    )


def test_a_plane_of_one_cell_fades_to_zero_over_half_a_cell() -> None:
    points = torch.tensor([[0.5, 0.5], [0.0, 0.5], [1.0, 1.0], [0.75, 0.5], [2.0, 0.5]])
    values = sample_points(torch.full((1, 1, 1), 4.0), points, torch.tensor([1.0, 1.0]))
    assert values.tolist() == [[4.0, 2.0, 1.0, 3.0, 0.0]]


def test_nothing_is_read_beyond_the_extents() -> None:
    input_size, points = torch.randn(1, 4, 4), torch.rand(1, 50, 2) * 4
    small = sample_points(input_size[:, :3, :2], points, torch.tensor([3.0, 2.0]))
    input_size[:, 3:], input_size[:, :, 2:] = torch.nan, torch.nan
    assert torch.equal(sample_points(input_size, points, torch.tensor([[3.0, 2.0]])), small)


def test_points_have_the_gradient_of_grid_sample() -> None:
    input_size = torch.randn(2, 4, 6, dtype=torch.float64).float().requires_grad_()
    points = torch.rand(2, 9, 2)
    sample_points(input_size, points * torch.tensor([6.0, 4.0]), torch.tensor([4.0, 6.0])).square().sum().backward()
    got, input_size.grad = input_size.grad, None
    wanted = functional.grid_sample(input_size[:, None], 2 * points[:, None] - 1, align_corners=False)
    wanted.square().sum().backward()
    assert torch.allclose(got, input_size.grad, atol=1e-5)


def test_boxes_of_masks_are_those_of_pycocotools() -> None:
    masks = torch.rand(5, 9, 11) > 0.95
    masks[3] = False
    boxes = boxes_of_masks(masks)
    boxes[:, 2:] -= boxes[:, :2]
    assert boxes.tolist() == coco.toBbox(runs_of_masks(masks)).tolist()
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


def test_labels_of_masks_are_those_of_the_whole_plane(monkeypatch) -> None:
    monkeypatch.setattr('vitdense.ops.mask_labels.BAND_VALUES', {'cpu': 1})
    probs, masks = torch.rand(6, 4), 3 * torch.randn(6, 5, 8)
    full = functional.interpolate(masks[None], (20, 32), mode='bilinear')[..., :18, :30]
    full = functional.interpolate(full, (31, 41), mode='bilinear')[0]
    geometry = dict(input_size=(20, 32), crop=(18, 30), out=(31, 41))
    assert torch.allclose(resize_masks(masks, **geometry), full, atol=1e-5)
    scores = (probs.T[:, :, None, None] * full.sigmoid()).sum(1)
    assert torch.allclose(class_scores(probs, full), scores, atol=1e-5)
    labels = labels_of_masks(probs, masks, **geometry)
    assert labels.dtype == torch.uint8 and labels.shape == (31, 41)
    assert (labels != scores.argmax(0)).double().mean() < 0.003  # ties in float32


@pytest.mark.parametrize(('values', 'heights'), [(1, [1] * 31), (10 * 41 * 2, [2] * 15 + [1]), (10**9, [31])])
def test_labels_are_made_a_band_of_rows_at_a_time(values, heights, monkeypatch) -> None:
    """10 values, 6 logits and 4 scores, at each of 41 columns."""
    recorded = []
    monkeypatch.setattr(mask_labels, 'BAND_VALUES', {'cpu': values})
    score = lambda probs, masks: recorded.append(masks.shape[1]) or class_scores(probs, masks)  # noqa: E731
    monkeypatch.setattr(mask_labels, 'class_scores', score)
    labels_of_masks(torch.rand(6, 4), torch.randn(6, 5, 8), input_size=(20, 32), crop=(18, 30), out=(31, 41))
    assert recorded == heights


@pytest.mark.parametrize(('count', 'dtype'), [(255, torch.uint8), (256, torch.int16)])
def test_labels_are_bytes_where_a_byte_is_enough(count, dtype) -> None:
    labels = labels_of_masks(torch.eye(count)[-1:], torch.ones(1, 2, 2), input_size=(8, 8), crop=(8, 8), out=(8, 8))
    assert labels.dtype == dtype and (labels == count - 1).all()
