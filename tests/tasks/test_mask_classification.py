"""Queries with masks: transformers' losses and matching, padding, images without objects, and what is predicted."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vitdense.errors import ConfigError, DataError, NumericsError
from vitdense.tasks.mask_classification import InstanceTask, MaskSemanticTask, _full_masks
from vitdense.tasks.mask_losses import MaskLoss
from vitdense.tasks.mask_matching import LayerMaskPredictions, MaskMatcher, MaskTargets
from vitdense.types import IGNORE, Meta, PixelOutputs, QueryOutputs, Target

CLASSES = 4
SMALL = MaskLoss(matcher=MaskMatcher(num_points=200), num_points=100)


def predictions(size=(64, 96), batch: int = 2, queries: int = 7, stride: int = 4, layers: int = 0) -> QueryOutputs:
    height, width = size
    return QueryOutputs(
        class_logits=torch.randn(batch, queries, CLASSES + 1),
        mask_logits=2 * torch.randn(batch, queries, height // stride, width // stride),
        sizes=torch.tensor([[float(height), float(width)]] * batch),
        input_size=size,
        aux=tuple(predictions(size, batch, queries, stride) for _ in range(layers)),
    )


def objects(count: int, size=(64, 96), crowd: tuple[int, ...] = ()) -> Target:
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        top, left = (int(torch.randint(side // 2, ())) for side in size)
        mask[top : top + size[0] // 3, left : left + size[1] // 3] = True
    iscrowd = torch.tensor([row in crowd for row in range(count)], dtype=torch.bool)
    return Target(labels=torch.randint(CLASSES, (count,)), masks=masks, iscrowd=iscrowd)


def loss_of_transformers(outputs: QueryOutputs, targets: list[Target], seed: int) -> dict[str, Tensor]:
    from transformers.models.eomt.modeling_eomt import EomtLoss  # here: ranks that are started import this file

    config = SimpleNamespace(
        num_labels=CLASSES,
        no_object_weight=0.1,
        train_num_points=100,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        class_weight=2.0,
        dice_weight=5.0,
        mask_weight=5.0,
    )
    criterion = EomtLoss(config, {})
    torch.manual_seed(seed)
    return criterion(
        outputs.mask_logits, outputs.class_logits, [t.masks.float() for t in targets], [t.labels for t in targets]
    )


def test_losses_are_those_of_transformers() -> None:
    outputs, targets = predictions(), [objects(3), objects(2)]
    wanted = loss_of_transformers(outputs, targets, seed=3)
    torch.manual_seed(3)  # the same points are drawn in the same order
    task = InstanceTask(losses=MaskLoss(matcher=MaskMatcher(num_points=100), num_points=100))
    losses = task.loss(outputs, targets)
    assert set(losses) == {'loss_class', 'loss_mask', 'loss_dice'}
    assert losses['loss_class'].item() == pytest.approx(2 * wanted['loss_cross_entropy'].item(), rel=1e-5)
    assert losses['loss_mask'].item() == pytest.approx(5 * wanted['loss_mask'].item(), rel=1e-5)
    assert losses['loss_dice'].item() == pytest.approx(5 * wanted['loss_dice'].item(), rel=1e-5)


def test_earlier_layers_are_trained_like_the_last() -> None:
    outputs, targets = predictions(layers=2), [objects(3), objects(1)]
    losses = InstanceTask(losses=SMALL).loss(outputs, targets)
    alone = [InstanceTask(losses=SMALL).loss(layer, targets) for layer in outputs.aux]
    assert losses['loss_aux'].item() == pytest.approx(sum(sum(each.values()) for each in alone).item(), rel=0.1)


def test_a_crowd_is_nobodys_object() -> None:
    outputs, target = predictions(batch=1), objects(3, crowd=(1,))
    targets = MaskTargets.of_objects([target], torch.device('cpu'))
    rows = MaskMatcher(num_points=50)(LayerMaskPredictions.of(outputs), targets)
    assert sorted(rows[rows >= 0].tolist()) == [0, 2]
    torch.manual_seed(0)
    losses = SMALL(outputs, targets)
    assert all(value.isfinite() for value in losses.values())


def test_classes_of_a_label_map_are_its_objects() -> None:
    labels = torch.full((6, 8), 2, dtype=torch.uint8)
    labels[:2], labels[5] = 0, IGNORE
    targets = MaskTargets.of_classes([labels, torch.full((4, 4), IGNORE, dtype=torch.uint8)], labels.device)
    assert targets.labels.tolist() == [0, 2] and targets.counts == (2, 0) and targets.images.tolist() == [0, 0]
    points = torch.tensor(
        [[0.5, 0.99], [0.5, 0.6], [1.0, 1.0]]
    )  # on an ignored pixel, on one of class 2, in the corner
    values, counted = targets.sample(0, torch.tensor([0, 1]), points)
    assert counted.tolist() == [False, True, False] and values[:, 1].tolist() == [0.0, 1.0]


def test_ignored_pixels_do_not_count() -> None:
    outputs = predictions(batch=1)
    labels = torch.zeros(64, 96, dtype=torch.uint8)
    labels[:, 50:] = IGNORE
    outputs.mask_logits[..., 13] = 0  # between labelled pixels and the cells that change
    task = MaskSemanticTask(losses=SMALL)
    torch.manual_seed(0)
    losses = task.loss(outputs, [Target(semantic=labels)])
    masks = outputs.mask_logits.clone()
    masks[..., 14:] = -masks[..., 14:]  # as much in doubt as before
    torch.manual_seed(0)
    changed = task.loss(outputs._replace(mask_logits=masks), [Target(semantic=labels)])
    assert all(losses[name].item() == pytest.approx(changed[name].item(), rel=1e-5) for name in losses)


def test_a_padded_image_costs_what_it_costs_alone() -> None:
    alone, target = predictions((48, 64), batch=1), objects(3, (40, 60))
    masks = enlarged(alone.mask_logits, (16, 24))
    padded = alone._replace(mask_logits=masks, input_size=(64, 96))
    losses = []
    for outputs in (alone, padded):
        torch.manual_seed(1)
        losses.append(InstanceTask(losses=SMALL).loss(outputs, [target]))
    assert all(losses[0][name].item() == pytest.approx(losses[1][name].item(), rel=1e-5) for name in losses[0])


def enlarged(masks: Tensor, size: tuple[int, int]) -> Tensor:
    full = torch.full((*masks.shape[:2], *size), 7.0)
    full[..., : masks.shape[2], : masks.shape[3]] = masks
    return full


@pytest.mark.parametrize('targets', [[objects(0), objects(0)], [Target(), Target()]])
def test_a_batch_without_objects_trains(targets: list[Target]) -> None:
    outputs = predictions(layers=1)
    outputs.class_logits.requires_grad_(), outputs.mask_logits.requires_grad_()
    losses = InstanceTask(losses=SMALL).loss(outputs, targets)
    assert losses['loss_mask'] == losses['loss_dice'] == 0
    sum(losses.values()).backward()
    assert (outputs.mask_logits.grad == 0).all() and outputs.class_logits.grad.isfinite().all()
    assert outputs.class_logits.grad.any() == (targets[0].labels is not None)


def test_semantic_images_without_labels_train() -> None:
    outputs = predictions()
    outputs.mask_logits.requires_grad_()
    task = MaskSemanticTask(losses=SMALL)
    maps = [Target(), Target(semantic=torch.full((64, 96), IGNORE, dtype=torch.uint8))]
    losses = task.loss(outputs, maps)
    sum(losses.values()).backward()
    assert losses['loss_mask'] == 0 and (outputs.mask_logits.grad == 0).all()


def test_what_is_not_finite_is_named() -> None:
    outputs = predictions(batch=1)
    outputs.mask_logits.fill_(torch.nan)
    with pytest.raises(NumericsError, match='no matching cost is finite: queries') as caught:
        InstanceTask(losses=SMALL).loss(outputs, [objects(2)])
    assert 'mask logits 100% not finite' in caught.value.where


def test_objects_without_masks_and_queries_without_masks_are_errors() -> None:
    for targets in ([objects(1)._replace(masks=None)], [objects(1), objects(1)._replace(masks=None)]):
        with pytest.raises(DataError, match='objects without masks'):
            InstanceTask().loss(predictions(batch=len(targets)), targets)
    for size in ((65, 96), (64, 97)):
        with pytest.raises(ValueError, match='larger than the padded input'):
            InstanceTask(losses=SMALL).loss(predictions(), [objects(1), objects(1, size)])
    with pytest.raises(ConfigError, match='mask_logits = None'):
        InstanceTask().loss(predictions(batch=1)._replace(mask_logits=None), [objects(1)])
    with pytest.raises(ConfigError, match='importance'):
        MaskLoss(importance=2.0)


def test_instances_are_masks_in_the_original_size_with_scores_and_boxes() -> None:
    logits = torch.full((1, 3, CLASSES + 1), -20.0)
    logits[0, 0, 1], logits[0, 1, 2], logits[0, 2, CLASSES] = 20.0, 20.0, 20.0
    masks = torch.full((1, 3, 8, 8), -30.0)
    masks[0, 0, 2:4, 1:5], masks[0, 1, 6:] = 30.0, 1.0
    outputs = QueryOutputs(logits, mask_logits=masks, sizes=torch.tensor([[32.0, 32.0]]), input_size=(32, 32))
    actual = InstanceTask(top_k=3).predict(outputs, [Meta(0, orig_size=(64, 48), size=(32, 24))])[0]
    assert actual.labels.tolist()[:2] == [1, 2] and actual.masks.shape[1:] == (64, 48)
    assert actual.boxes[0].tolist() == [8.0, 16.0, 40.0, 32.0]
    assert 480 < actual.masks[0].sum() <= 16 * 32 and actual.scores[0] > 0.9  # bilinear: corners are round
    assert actual.scores[1] == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.02)
    assert (actual.scores[:-1] >= actual.scores[1:]).all() and actual.masks.flatten(1).any(1).all()


def test_the_loss_and_the_cost_at_a_single_point(monkeypatch) -> None:
    """Everywhere the mask says c, and the object is: softplus(-c), and 1 - (2 p + 1) / (p + 2)."""
    outputs = predictions(batch=1, queries=1)._replace(mask_logits=torch.full((1, 1, 16, 24), 0.7))
    target = Target(labels=torch.tensor([2]), masks=torch.ones(1, 64, 96, dtype=torch.bool))
    nll, prob = functional.softplus(torch.tensor(-0.7)).item(), torch.tensor(0.7).sigmoid().item()
    dice, matcher = 1 - (2 * prob + 1) / (prob + 2), MaskMatcher(num_points=1)
    monkeypatch.setattr(torch, 'rand', lambda *size, device: torch.full(size, 0.5))
    losses = InstanceTask(losses=MaskLoss(matcher=matcher, num_points=1)).loss(outputs, [target])
    assert losses['loss_mask'].item() == pytest.approx(5 * nll, rel=1e-4)
    assert losses['loss_dice'].item() == pytest.approx(5 * dice, rel=1e-4)
    costs = matcher.costs(LayerMaskPredictions.of(outputs), MaskTargets.of_objects([target], torch.device('cpu')))
    chosen = outputs.class_logits.softmax(-1)[0, 0, 2].item()
    assert costs.item() == pytest.approx(5 * nll + 5 * dice - 2 * chosen, rel=1e-4)


def test_defaults_are_those_of_mask2former() -> None:
    matcher = MaskMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=12544)
    wanted = dict(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, no_object_weight=0.1, num_points=12544)
    assert MaskLoss() == MaskLoss(matcher=matcher, **wanted, oversample=3.0, importance=0.75)
    assert InstanceTask().top_k == 100 and InstanceTask().losses == MaskSemanticTask().losses == MaskLoss()


def test_pixels_of_a_mask_have_a_logit_above_zero() -> None:
    meta = Meta(0, orig_size=(2, 3), size=(2, 3))
    masks = torch.tensor([[[-1.0, 3.0, -1.0], [-1.0, -1.0, -1.0]], [[0.0] * 3] * 2, [[0.5] * 3, [-9.0] * 3]])
    ((inside, confidence),) = _full_masks(masks, meta, (2, 3))
    assert inside.flatten(1).sum(1).tolist() == [1, 0, 3] and confidence[1] == 0
    assert torch.allclose(confidence[[0, 2]], torch.tensor([3.0, 0.5]).sigmoid())


def test_masks_are_resized_a_few_at_a_time(monkeypatch) -> None:
    masks, meta = torch.randn(5, 4, 6), Meta(0, orig_size=(20, 30), size=(16, 24))
    (together,) = _full_masks(masks, meta, (16, 24))
    for values, lengths in ((1, [1] * 5), (1300, [2, 2, 1])):  # 600 for each mask
        monkeypatch.setattr('vitdense.tasks.mask_classification.MASKS_AT_A_TIME', values)
        parts = [*_full_masks(masks, meta, (16, 24))]
        assert [len(part[0]) for part in parts] == lengths
        assert all(
            torch.equal(torch.cat(part), whole) for part, whole in zip(zip(*parts, strict=True), together, strict=True)
        )


def test_label_maps_from_queries_and_from_log_scores_agree() -> None:
    outputs, task = predictions(), MaskSemanticTask()
    smooth = functional.interpolate(4 * torch.randn(2, CLASSES, 3, 4), (16, 24), mode='bilinear')
    outputs = outputs._replace(mask_logits=smooth, class_logits=9 * torch.eye(CLASSES, CLASSES + 1).expand(2, -1, -1))
    metas = [Meta(row, orig_size=(64, 96), size=(64, 96)) for row in range(2)]
    direct = task.predict(outputs, metas)
    scores = task.blendable(outputs, 'pixels')
    assert isinstance(scores, PixelOutputs) and scores.logits.shape == (2, CLASSES, 64, 96)
    through = task.predict(scores, metas)
    for one, other in zip(direct, through, strict=True):
        assert (one.labels != other.labels).double().mean() < 0.001  # ties in float32


def losses_of(rank: int) -> dict[str, float]:
    torch.manual_seed(rank)
    outputs = predictions(batch=1)
    losses = InstanceTask(losses=SMALL).loss(outputs, [objects(4) if rank == 0 else objects(0)])
    return {name: value.item() for name, value in losses.items()}


def test_ranks_share_the_number_of_objects(run_ranks) -> None:
    torch.manual_seed(0)
    alone = InstanceTask(losses=SMALL).loss(predictions(batch=1), [objects(4)])
    first, second = run_ranks(losses_of)
    assert first['loss_mask'] == pytest.approx(2 * alone['loss_mask'].item(), rel=1e-5)
    assert second['loss_mask'] == 0
