"""Gradients of all losses of queries, and denoising with its masks, equal those of transformers."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_lw_detr import LwDetrForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrLoss
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from tests.heads.from_transformers import relative_error
from tests.tasks.test_detection_losses import boxes_cxcywh, peer, scene
from vitdense.heads.detr.queries import self_attention_mask
from vitdense.tasks.denoising import SMALLEST, Denoising
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import IouAware, SoftmaxCrossEntropy, Varifocal
from vitdense.tasks.matching import HungarianMatcher, ObjectTargets
from vitdense.types import QueryOutputs, Target

SIZES = torch.tensor([[64.0, 96.0], [48.0, 80.0]])
COUNT = 2  # objects of each image: as many in all of them, so that no noised query is filler
RT_DETR = SimpleNamespace(
    num_labels=5,
    matcher_class_cost=2.0,
    matcher_bbox_cost=5.0,
    matcher_giou_cost=2.0,
    use_focal_loss=True,
    matcher_alpha=0.25,
    matcher_gamma=2.0,
    weight_loss_vfl=1.0,
    weight_loss_bbox=5.0,
    weight_loss_giou=2.0,
    eos_coefficient=1e-4,
    focal_loss_alpha=0.75,
    focal_loss_gamma=2.0,
)


def leaves_of(outputs: QueryOutputs) -> list[Tensor]:
    """Return the logits and boxes of all layers, which have gradients from now on."""
    layers = [*outputs.aux, outputs, *([] if outputs.proposals is None else [outputs.proposals])]
    return [tensor.requires_grad_() for layer in layers for tensor in (layer.class_logits, layer.boxes)]


def assert_equal_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    got, wanted = torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves)
    assert all(relative_error(*pair) < 1e-5 for pair in zip(got, wanted, strict=True))


@pytest.mark.parametrize('kind', ['detr', 'deformable'])
def test_gradients_of_all_layers_equal_transformers(kind):
    outputs, targets, theirs = scene(6 if kind == 'detr' else 5)
    leaves = leaves_of(outputs)
    if kind == 'detr':
        function = ForObjectDetectionLoss
        matcher = HungarianMatcher(class_weight=2.0, form='softmax')
        task = DetectionTask(classification=SoftmaxCrossEntropy(), matcher=matcher)
    else:
        function, task = DeformableDetrForObjectDetectionLoss, DetectionTask()
    total, _ = peer(function, outputs, theirs)
    assert_equal_gradients(sum(task.loss(outputs, targets).values()), total, leaves)


@pytest.mark.parametrize('groups', [1, 3])
def test_gradients_of_groups_and_proposals_equal_lw_detr(groups):
    outputs, targets, theirs = scene(5, num_queries=12 * groups, groups=groups)
    outputs = outputs._replace(proposals=scene(5, num_layers=1, num_queries=12 * groups, groups=groups)[0])
    leaves = leaves_of(outputs)
    more = {'enc_outputs_class': outputs.proposals.class_logits, 'enc_outputs_coord': outputs.proposals.boxes}
    total, _ = peer(LwDetrForObjectDetectionLoss, outputs, theirs, **more)
    ours = DetectionTask(classification=IouAware()).loss(outputs, targets)
    assert_equal_gradients(sum(ours.values()), total, leaves)


@pytest.fixture
def objects() -> tuple[list[Target], list[dict[str, Tensor]]]:
    """The same objects as our tasks and as transformers take them."""
    targets, theirs = [], []
    for size in SIZES:
        relative, labels = boxes_cxcywh(COUNT), torch.randint(5, (COUNT,))
        corners = torch.cat([relative[:, :2] - relative[:, 2:] / 2, relative[:, :2] + relative[:, 2:] / 2], dim=1)
        targets.append(Target(boxes=corners * size.flip(0).repeat(2), labels=labels))
        theirs.append({'class_labels': labels, 'boxes': relative})
    return targets, theirs


@pytest.fixture
def same_samples(monkeypatch) -> None:
    """Random numbers that depend on their count alone, whatever function of torch draws them and in which order."""

    def sampled(like: Tensor) -> Tensor:
        return torch.empty(like.shape).uniform_(generator=torch.Generator().manual_seed(like.numel()))

    def integers(like: Tensor, low: int, high: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        low, high = (0, low) if high is None else (low, high)
        return (low + sampled(like) * (high - low)).floor().to(dtype or like.dtype)

    monkeypatch.setattr(torch, 'rand', lambda shape, **_: sampled(torch.empty(shape)))
    monkeypatch.setattr(torch, 'rand_like', lambda like, **_: sampled(like))
    monkeypatch.setattr(torch, 'randint_like', integers)


def test_noised_objects_and_what_they_see_equal_rt_detr(objects, same_samples):
    targets, theirs = objects
    denoising_queries = Denoising(num_queries=8, label_noise=0.8, box_noise=0.9)(
        ObjectTargets.of(targets, SIZES), num_classes=5
    )
    labels, logits, mask, context = get_contrastive_denoising_training_group(theirs, 5, 7, lambda x: x, 8, 0.8, 0.9)
    assert denoising_queries.groups == context['dn_num_group'] == 4
    assert torch.equal(denoising_queries.labels, labels.long())
    centers, sides = logits.sigmoid().split(2, dim=-1)
    wanted = torch.cat([centers, sides.clamp(min=SMALLEST)], dim=-1)  # theirs stop at 1e-5
    assert torch.allclose(denoising_queries.boxes, wanted, atol=2e-5)
    assert [row.nonzero().flatten().tolist() for row in denoising_queries.positive] == [
        index.tolist() for index in context['dn_positive_idx']
    ]
    num_noised = denoising_queries.labels.shape[1]
    order = [*range(7, 7 + num_noised), *range(7)]  # theirs has the noised queries in front
    visible = self_attention_mask(7, 1, denoising_queries)[:, 0][:, order][:, :, order]
    assert torch.equal(visible, (mask == 0).expand_as(visible))


def test_the_loss_of_denoising_and_its_gradients_equal_rt_detr(objects):
    targets, theirs = objects
    denoising_queries = Denoising(num_queries=8)(ObjectTargets.of(targets, SIZES), num_classes=5)
    outputs, noised = (
        QueryOutputs(torch.randn(2, count, 5), boxes_cxcywh(2, count), SIZES)
        for count in (9, denoising_queries.labels.shape[1])
    )
    earlier = QueryOutputs(torch.randn_like(noised.class_logits), boxes_cxcywh(*noised.boxes.shape[:2]), SIZES)
    leaves = leaves_of(noised._replace(aux=(earlier,)))
    task = DetectionTask(num_classes=5, classification=Varifocal(), denoising=Denoising(num_queries=8))
    ours = task.loss(
        outputs._replace(denoising=noised._replace(aux=(earlier,)), denoising_queries=denoising_queries), targets
    )

    layers = [{'logits': each.class_logits, 'pred_boxes': each.boxes} for each in (earlier, noised)]
    locations = [row.nonzero().flatten() for row in denoising_queries.positive]
    context = {'dn_positive_idx': locations, 'dn_num_group': denoising_queries.groups}
    peers = RTDetrLoss(RT_DETR)(
        {
            'logits': outputs.class_logits,
            'pred_boxes': outputs.boxes,
            'dn_auxiliary_outputs': layers,
            'denoising_meta_values': context,
        },
        theirs,
    )
    wanted = sum(value for name, value in peers.items() if '_dn_' in name)
    assert torch.allclose(ours['loss_denoising'], wanted, rtol=1e-5)
    assert_equal_gradients(ours['loss_denoising'], wanted, leaves)
