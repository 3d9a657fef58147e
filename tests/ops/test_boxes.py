"""Boxes: their overlaps equal torchvision's, and are finite for every finite box."""

import pytest
import torch
from torchvision import ops

from vitdense.ops.boxes import generalized_iou, iou, scales_of, to_cxcywh, to_original, to_xyxy


def boxes(*shape):
    corner = torch.rand(*shape, 2, dtype=torch.float64)
    return torch.cat([corner, corner + torch.rand(*shape, 2, dtype=torch.float64)], dim=-1)


def test_all_pairs_equal_torchvision():
    mine, others = boxes(7), boxes(5)
    assert torch.allclose(iou(mine[:, None], others), ops.box_iou(mine, others), atol=1e-12)
    assert torch.allclose(generalized_iou(mine[:, None], others), ops.generalized_box_iou(mine, others), atol=1e-12)


def test_pairs_equal_torchvision_in_value_and_gradient():
    ours, theirs = boxes(6).requires_grad_(), boxes(6)
    loss = (1 - generalized_iou(ours, theirs)).sum()
    loss.backward()
    peer = ours.detach().clone().requires_grad_()
    expected = ops.generalized_box_iou_loss(peer, theirs, reduction='sum', eps=0)
    expected.backward()
    assert torch.allclose(loss, expected) and torch.allclose(ours.grad, peer.grad)


def test_giou_by_hand():
    left, right = torch.tensor([0.0, 0, 1, 1]), torch.tensor([2.0, 0, 3, 1])
    assert iou(left, right) == 0
    assert generalized_iou(left, right).item() == pytest.approx(-1 / 3)  # a third of the enclosing 3 x 1 is empty
    assert generalized_iou(left, left) == 1


@pytest.mark.parametrize('size', [0.0, 1e-30, 1e-6, 1e15])
def test_overlaps_are_finite_with_finite_gradients(size):
    box = torch.tensor([[0.5, 0.5, 0.5 + size, 0.5 + size]], requires_grad=True)
    for other in (box.detach(), torch.tensor([[0.1, 0.1, 0.2, 0.2]])):
        value = iou(box, other) + generalized_iou(box, other)
        value.sum().backward()
        assert value.isfinite().all() and box.grad.isfinite().all()


def test_layouts_are_inverse():
    some = boxes(3, 4)
    assert torch.allclose(to_xyxy(to_cxcywh(some)), some)
    assert torch.equal(to_cxcywh(torch.tensor([10.0, 20, 30, 60])), torch.tensor([20.0, 40, 20, 40]))


def test_scales_are_width_and_height():
    assert scales_of(torch.tensor([[480.0, 640.0]])).tolist() == [[640, 480, 640, 480]]


def test_the_way_to_the_original_scales_and_clips():
    some = torch.tensor([[[10.0, 10, 50, 100], [-5, -5, 500, 500]]])
    back = to_original(some, torch.tensor([[100.0, 200.0]]), torch.tensor([[200.0, 100.0]]))
    assert back.tolist() == [[[5, 20, 25, 200], [0, 0, 100, 200]]]
