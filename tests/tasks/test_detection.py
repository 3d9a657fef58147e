"""The detection task: losses that train every parameter on every rank, and boxes in pixels of the original."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitdense.errors import ConfigError
from vitdense.registry import build
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.detection import DetectionTask
from vitdense.tasks.detection_losses import Focal, IouAware, SoftmaxCrossEntropy, Varifocal
from vitdense.tasks.matching import HungarianMatcher
from vitdense.types import Instances, Meta, QueryOutputs, Target

PARTS = (Focal(), Varifocal(), IouAware(), SoftmaxCrossEntropy())
NUM_CLASSES = 3
EMPTY = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


class Queries(nn.Module):
    """The smallest detector with everything: proposals, two layers, and denoising queries."""

    def __init__(self, columns: int = NUM_CLASSES) -> None:
        super().__init__()
        self.content = nn.Embedding(10, 8)
        self.names = nn.Embedding(NUM_CLASSES, 8)
        self.first, self.second, self.third = (nn.Linear(8, columns + 4) for _ in range(3))

    def forward(self, sizes, denoising_queries=None):
        queries = self.content.weight.expand(len(sizes), -1, -1)
        outputs = self._read(queries, sizes)._replace(proposals=self._outputs(self.first, queries, sizes))
        if denoising_queries is None:
            return outputs
        noised = self._read(self.names(denoising_queries.labels) + denoising_queries.boxes.repeat(1, 1, 2), sizes)
        return outputs._replace(denoising=noised, denoising_queries=denoising_queries)

    def _read(self, queries, sizes):
        earlier, last = (self._outputs(layer, queries, sizes) for layer in (self.second, self.third))
        return last._replace(aux=(earlier,))

    @staticmethod
    def _outputs(layer, queries, sizes):
        logits, boxes = layer(queries).split([layer.out_features - 4, 4], dim=-1)
        return QueryOutputs(logits, boxes.sigmoid(), sizes)


def task_of(part=None, **more):
    return DetectionTask(num_classes=NUM_CLASSES, classification=part, denoising=Denoising(num_queries=6), **more)


def target_of(count):
    corner = torch.rand(count, 2) * 30
    return Target(boxes=torch.cat([corner, corner + 10], dim=1), labels=torch.arange(count) % NUM_CLASSES)


def losses_of(model, task, targets):
    sizes = torch.full((len(targets), 2), 64.0)
    return task.loss(model(sizes, task.training_inputs(targets, sizes)), targets)


@pytest.mark.parametrize('part', PARTS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize(
    'targets',
    [[EMPTY, EMPTY], [Target(), Target()], [EMPTY, target_of(2), Target()]],
    ids=['empty', 'unlabelled', 'mixed'],
)
def test_every_parameter_has_a_finite_gradient(part, targets):
    model = Queries(NUM_CLASSES + (part.form == 'softmax'))
    losses = losses_of(model, task_of(part), targets)
    assert list(losses) == ['loss_class', 'loss_l1', 'loss_giou', 'loss_aux', 'loss_proposals', 'loss_denoising']
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if all(target is EMPTY for target in targets):
        assert losses['loss_l1'] == losses['loss_giou'] == losses['loss_denoising'] == 0 < losses['loss_class']


def test_unlabelled_images_do_not_count():
    model, task, labelled = Queries(), DetectionTask(proposals_per_object=2), [target_of(3), EMPTY]
    alone = losses_of(model, task, labelled)
    among = losses_of(model, task, [labelled[0], Target(), labelled[1]])
    assert all(torch.allclose(among[name], value) for name, value in alone.items())


def test_a_crowd_is_nobodys_object():
    model, task, target = Queries(), DetectionTask(), target_of(3)
    crowded = Target(
        boxes=torch.cat([target.boxes, torch.tensor([[0.0, 0, 64, 64]])]),
        labels=torch.cat([target.labels, torch.tensor([1])]),
        iscrowd=torch.tensor([False, False, False, True]),
    )
    assert losses_of(model, task, [crowded]) == losses_of(model, task, [target])


def test_weights_multiply_their_losses():
    model, targets = Queries(), [target_of(3)]
    torch.manual_seed(1)
    plain = losses_of(model, task_of(), targets)
    torch.manual_seed(1)
    more = losses_of(model, task_of(aux_weight=2, proposal_weight=3, denoising_weight=4), targets)
    for name, factor in (('loss_class', 1), ('loss_aux', 2), ('loss_proposals', 3), ('loss_denoising', 4)):
        assert torch.allclose(more[name], factor * plain[name])


def test_perfect_predictions_have_no_box_loss():
    target = target_of(2)
    sizes = torch.tensor([[64.0, 64.0]])
    boxes = torch.tensor([[[0.5, 0.5, 0.1, 0.1]]]).repeat(1, 5, 1)
    boxes[0, [1, 3]] = torch.cat([target.boxes[:, :2] + target.boxes[:, 2:], 20 * torch.ones(2, 2)], dim=1) / 128
    logits = torch.full((1, 5, 3), -9.0)
    logits[0, [1, 3], target.labels] = 9.0
    losses = DetectionTask().loss(QueryOutputs(logits, boxes, sizes), [target])
    assert all(value < 1e-5 for value in losses.values())


def _gradients(model, targets):
    noise = Denoising(num_queries=2, label_noise=0, box_noise=0)
    task = DetectionTask(proposals_per_object=2, num_classes=NUM_CLASSES, denoising=noise)
    for _ in range(2):
        sum(losses_of(model, task, targets).values()).backward()
    return [parameter.grad.tolist() for parameter in model.parameters()]


def _train(rank):
    """Rank 1 never has an object; the gradients are averaged as usual."""
    torch.manual_seed(0)
    model, target = DistributedDataParallel(Queries()), target_of(2)
    return _gradients(model, [target] if rank == 0 else [EMPTY])


def test_a_rank_without_boxes_trains_with_the_others(run_ranks):
    grads, same = run_ranks(_train)
    torch.manual_seed(0)
    model, target = Queries(), target_of(2)
    one_batch = _gradients(model, [target, EMPTY])
    assert grads == same
    for mine, other in zip(grads, one_batch, strict=True):
        assert torch.allclose(torch.tensor(mine), torch.tensor(other), rtol=1e-4, atol=1e-6)


METAS = [
    Meta(1, size=(48, 64), orig_size=(96, 256)),  # its region is whole cells: larger than the image
    Meta(2, size=(64, 32), orig_size=(64, 32)),
]
REGIONS = torch.tensor([[64.0, 64.0], [64.0, 32.0]])


def test_predictions_are_the_best_pairs_in_original_pixels():
    logits = torch.full((2, 3, 2), -5.0)
    logits[0, 1, 1], logits[0, 1, 0], logits[1, 2, 0] = 3.0, 1.0, 2.0
    boxes = torch.tensor([0.5, 0.5, 0.25, 0.5]).repeat(2, 3, 1)
    boxes[1, 2] = torch.tensor([0.9, 0.5, 0.4, 2.0])
    actual = DetectionTask(top_k=4).predict(QueryOutputs(logits, boxes, REGIONS), METAS)
    assert all(isinstance(each, Instances) and len(each.scores) == 4 for each in actual)
    assert actual[0].labels[:2].tolist() == [1, 0] and torch.allclose(
        actual[0].scores[:2], torch.tensor([3.0, 1]).sigmoid()
    )
    # (24, 16, 40, 48) in pixels of the input; the image is 48 x 64 of them, the original 96 x 256
    assert actual[0].boxes[0].tolist() == [96, 32, 160, 96]
    assert torch.allclose(actual[1].boxes[0], torch.tensor([22.4, 0, 32, 64]))
    assert (actual[0].scores.diff() <= 0).all()


def test_duplicates_of_a_class_are_left_out_where_that_is_wanted():
    logits = torch.full((1, 4, 2), -5.0)
    logits[0, 0, 0], logits[0, 1, 0], logits[0, 2, 1], logits[0, 3, 0] = 3.0, 2.0, 1.0, 0.0
    boxes = torch.tensor([[0.3, 0.5, 0.4, 0.4], [0.32, 0.5, 0.4, 0.4], [0.3, 0.5, 0.4, 0.4], [0.8, 0.5, 0.2, 0.2]])
    outputs = QueryOutputs(logits, boxes[None], REGIONS[:1])
    plain = DetectionTask(top_k=4).predict(outputs, METAS[:1])[0]
    kept = DetectionTask(top_k=4, nms_iou=0.6).predict(outputs, METAS[:1])[0]
    assert plain.labels.tolist() == [0, 0, 1, 0] and kept.labels.tolist() == [0, 1, 0]  # of query 1, IoU 0.9
    assert torch.equal(kept.scores, plain.scores[[0, 2, 3]]) and torch.equal(kept.boxes, plain.boxes[[0, 2, 3]])
    assert len(DetectionTask(top_k=4, nms_iou=0.95).predict(outputs, METAS[:1])[0].scores) == 4


def test_softmax_predictions_equal_transformers():
    from types import SimpleNamespace

    from transformers import DetrImageProcessor

    outputs = QueryOutputs(torch.randn(2, 6, 4), 0.3 + 0.2 * torch.rand(2, 6, 4), REGIONS)
    ours = DetectionTask(classification=SoftmaxCrossEntropy()).predict(
        outputs, [meta._replace(size=(64, 64), orig_size=(64, 64)) for meta in METAS]
    )
    alike = SimpleNamespace(logits=outputs.class_logits, pred_boxes=outputs.boxes)
    theirs = DetrImageProcessor.post_process_object_detection(None, alike, threshold=0.0, target_sizes=REGIONS)
    for mine, other in zip(ours, theirs, strict=True):
        order = other['scores'].argsort(descending=True)
        assert torch.allclose(mine.scores, other['scores'][order])
        assert torch.equal(mine.labels, other['labels'][order])
        assert torch.allclose(mine.boxes, other['boxes'][order], rtol=1e-5)


def test_sigmoid_predictions_equal_transformers():
    from types import SimpleNamespace

    from transformers import DeformableDetrImageProcessor

    outputs = QueryOutputs(torch.randn(2, 30, 5), 0.3 + 0.2 * torch.rand(2, 30, 4), REGIONS)
    metas = [Meta(0, size=tuple(size), orig_size=tuple(size)) for size in REGIONS.int().tolist()]
    ours = DetectionTask().predict(outputs, metas)
    alike = SimpleNamespace(logits=outputs.class_logits, pred_boxes=outputs.boxes)
    theirs = DeformableDetrImageProcessor.post_process_object_detection(None, alike, 0.0, REGIONS, top_k=100)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.scores, other['scores']) and torch.equal(mine.labels, other['labels'])
        assert torch.allclose(mine.boxes, other['boxes'], rtol=1e-5)


def test_half_precision_outputs_are_read_in_float32():
    outputs = Queries()(torch.full((1, 2), 64.0))
    halves = outputs._replace(class_logits=outputs.class_logits.bfloat16(), boxes=outputs.boxes.bfloat16())
    with torch.autocast('cpu', torch.bfloat16):
        losses = DetectionTask().loss(halves, [target_of(3)])
        actual = DetectionTask().predict(halves, METAS[:1])
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert actual[0].boxes.dtype == actual[0].scores.dtype == torch.float32


@pytest.mark.parametrize(
    'wrong',
    [
        {'datasets': 'coco'},
        {'field': 'lables'},
        {'top_k': 0},
        {'nms_iou': 1.5},
        {'proposals_per_object': 0},
        {'giou_weight': -1},
        {'denoising': Denoising()},
        {'classification': SoftmaxCrossEntropy(), 'matcher': HungarianMatcher()},
    ],
)
def test_wrong_arguments_are_errors_now(wrong):
    with pytest.raises(ConfigError) as caught:
        DetectionTask(**wrong)
    assert caught.value.fix


def test_defaults_are_those_of_deformable_detr():
    task = DetectionTask()
    names = ('l1_weight', 'giou_weight', 'aux_weight', 'proposal_weight', 'proposals_per_object', 'denoising_weight')
    assert [getattr(task, name) for name in names] == [5.0, 2.0, 1.0, 1.0, 1, 1.0]
    assert (task.top_k, task.field, task.datasets, task.denoising) == (100, 'labels', None, None)
    assert task.classification == Focal(weight=1.0, alpha=0.25, gamma=2.0)
    assert Varifocal() == Varifocal(weight=1.0, alpha=0.75, gamma=2.0)  # RT-DETR
    assert IouAware() == IouAware(weight=1.0, alpha=0.25, gamma=2.0)  # LW-DETR
    assert SoftmaxCrossEntropy() == SoftmaxCrossEntropy(weight=1.0, no_object_weight=0.1)  # DETR


def test_parts_may_be_recipes():
    recipe = {
        'type': DetectionTask,
        'classification': {'type': SoftmaxCrossEntropy},
        'num_classes': 3,
        'denoising': {'type': Denoising},
    }
    task = build(recipe)
    assert task.matcher == HungarianMatcher(class_weight=1.0, form='softmax') and task.denoising == Denoising()
