"""Losses of queries: torchvision's and transformers' values on the same matching."""

from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_lw_detr import LwDetrForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrLoss

from vitdense.errors import ConfigError
from vitdense.ops.boxes import iou, to_xyxy
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import Focal, IouAware, SoftmaxCrossEntropy, Varifocal, box_losses
from vitdense.tasks.matching import IGNORED, NO_OBJECT, HungarianMatcher
from vitdense.types import QueryOutputs, Target

PARTS = (Focal(), Varifocal(), IouAware(), SoftmaxCrossEntropy())
SIZES = torch.tensor([[64.0, 96.0], [48.0, 80.0], [64.0, 64.0]])
CONFIG = {
    'class_cost': 2.0,
    'bbox_cost': 5.0,
    'giou_cost': 2.0,
    'class_loss_coefficient': 1,
    'bbox_loss_coefficient': 5,
    'giou_loss_coefficient': 2,
    'eos_coefficient': 0.1,
    'focal_alpha': 0.25,
    'auxiliary_loss': True,
}


def boxes_cxcywh(*shape):
    return torch.cat([torch.rand(*shape, 2), 0.05 + 0.4 * torch.rand(*shape, 2)], dim=-1)


def scene(num_classes, *, num_layers=3, num_queries=12, groups=1):
    """Return outputs of ours with all layers, targets, and the same targets as transformers takes them."""
    layers = [
        QueryOutputs(torch.randn(3, num_queries, num_classes), boxes_cxcywh(3, num_queries), SIZES, groups=groups)
        for _ in range(num_layers)
    ]
    targets, theirs = [], []
    for size, count in zip(SIZES, (4, 0, 2), strict=True):
        relative, labels = boxes_cxcywh(count), torch.randint(5, (count,))
        targets.append(Target(boxes=to_xyxy(relative) * size.flip(0).repeat(2), labels=labels))
        theirs.append({'class_labels': labels, 'boxes': relative})
    return layers[-1]._replace(aux=tuple(layers[:-1])), targets, theirs


def peer(function, outputs, theirs, num_labels=5, **more):
    layers = (*outputs.aux, outputs)
    config = SimpleNamespace(**CONFIG, num_labels=num_labels, decoder_layers=len(layers), group_detr=outputs.groups)
    logits, boxes = ([getattr(layer, name) for layer in layers] for name in ('class_logits', 'boxes'))
    total, parts, _ = function(
        logits[-1], theirs, 'cpu', boxes[-1], config, outputs_class=logits, outputs_coord=boxes, **more
    )
    return total, parts


def assert_equal_losses(ours, total, parts):
    assert torch.allclose(ours['loss_class'], parts['loss_ce'], rtol=1e-5)
    assert torch.allclose(ours['loss_l1'], 5 * parts['loss_bbox'], rtol=1e-5)
    assert torch.allclose(ours['loss_giou'], 2 * parts['loss_giou'], rtol=1e-5)
    assert torch.allclose(sum(ours.values()), total, rtol=1e-5)


def test_detr_equals_transformers():
    outputs, targets, theirs = scene(6)
    task = DetectionTask(
        classification=SoftmaxCrossEntropy(), matcher=HungarianMatcher(class_weight=2.0, form='softmax')
    )
    assert_equal_losses(task.loss(outputs, targets), *peer(ForObjectDetectionLoss, outputs, theirs))


def test_deformable_detr_equals_transformers():
    outputs, targets, theirs = scene(5)
    ours = DetectionTask().loss(outputs, targets)
    assert_equal_losses(ours, *peer(DeformableDetrForObjectDetectionLoss, outputs, theirs))


@pytest.mark.parametrize('groups', [1, 3])
def test_rf_detr_equals_transformers_with_its_groups_and_proposals(groups):
    outputs, targets, theirs = scene(5, num_queries=12 * groups, groups=groups)
    proposals = scene(5, num_layers=1, num_queries=12 * groups, groups=groups)[0]
    ours = DetectionTask(classification=IouAware()).loss(outputs._replace(proposals=proposals), targets)
    more = {'enc_outputs_class': proposals.class_logits, 'enc_outputs_coord': proposals.boxes}
    total, parts = peer(LwDetrForObjectDetectionLoss, outputs, theirs, **more)
    assert_equal_losses(ours, total, parts)
    first = parts['loss_ce_enc'] + 5 * parts['loss_bbox_enc'] + 2 * parts['loss_giou_enc']
    assert torch.allclose(ours['loss_proposals'], first, rtol=1e-5)


def test_varifocal_equals_transformers():
    logits, boxes, wanted = torch.randn(1, 2, 6, 5), boxes_cxcywh(1, 2, 6), boxes_cxcywh(1, 2, 6)
    labels = torch.full((1, 2, 6), NO_OBJECT)
    labels[0, 0, 3], labels[0, 1, 5] = 2, 4
    ious = iou(to_xyxy(boxes), to_xyxy(wanted)).where(labels >= 0, 0)
    ours = Varifocal()(logits, labels, ious, torch.tensor(2.0))
    alike = SimpleNamespace(num_classes=5, alpha=0.75, gamma=2.0)
    for name in ('_get_source_permutation_idx', '_get_target_permutation_idx'):
        setattr(alike, name, getattr(RTDetrLoss, name).__get__(alike))
    targets = [{'class_labels': labels[0, row, [q]], 'boxes': wanted[0, row, [q]]} for row, q in ((0, 3), (1, 5))]
    indices = [(torch.tensor([query]), torch.tensor([0])) for query in (3, 5)]
    theirs = RTDetrLoss.loss_labels_vfl(alike, {'logits': logits[0], 'pred_boxes': boxes[0]}, targets, indices, 2)
    assert torch.allclose(ours, theirs['loss_vfl'], rtol=1e-5)


def test_focal_equals_torchvision():
    logits, labels = torch.randn(2, 3, 6, 5), torch.randint(-1, 5, (2, 3, 6))
    targets = torch.nn.functional.one_hot(labels + 1, 6)[..., 1:].float()
    theirs = sigmoid_focal_loss(logits, targets, alpha=0.3, gamma=1.5).flatten(1).sum(1) / 7
    ours = Focal(alpha=0.3, gamma=1.5)(logits, labels, torch.zeros(2, 3, 6), torch.tensor(7.0))
    assert torch.allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize('part', PARTS, ids=lambda part: type(part).__name__)
def test_ignored_queries_do_not_exist(part):
    logits, labels, ious = torch.randn(2, 3, 6, 5), torch.randint(-1, 4, (2, 3, 6)), torch.rand(2, 3, 6)
    without = part(logits[:, :, :4], labels[:, :, :4], ious[:, :, :4], torch.tensor(7.0))
    labels[:, :, 4:] = IGNORED
    assert torch.allclose(part(logits, labels, ious, torch.tensor(7.0)), without)


@pytest.mark.parametrize('scale', [1.0, 300.0])
@pytest.mark.parametrize('part', PARTS, ids=lambda part: type(part).__name__)
def test_extreme_logits_give_finite_gradients(part, scale):
    logits = (torch.randn(1, 3, 6, 5) * scale).requires_grad_()
    loss = part(logits, torch.randint(-2, 4, (1, 3, 6)), torch.zeros(1, 3, 6), torch.tensor(1.0))
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()


def test_boxes_of_unmatched_queries_cost_nothing_whatever_they_are():
    boxes, wanted = boxes_cxcywh(1, 1, 4), boxes_cxcywh(1, 1, 4)
    positive = torch.tensor([[[True, False, False, True]]])
    boxes[0, 0, 1], boxes[0, 0, 2] = float('nan'), float('inf')
    boxes.requires_grad_()
    distance, miss = box_losses(boxes, wanted, positive)
    (distance + miss).sum().backward()
    alone = box_losses(boxes[:, :, [0, 3]], wanted[:, :, [0, 3]], positive[:, :, [0, 3]])
    assert torch.equal(distance, alone[0]) and torch.equal(miss, alone[1])
    assert (boxes.grad[0, 0, 1:3] == 0).all()


def test_wrong_arguments_are_errors_now():
    for wrong in (lambda: Focal(alpha=2), lambda: IouAware(gamma=0), lambda: SoftmaxCrossEntropy(no_object_weight=-1)):
        with pytest.raises(ConfigError):
            wrong()
