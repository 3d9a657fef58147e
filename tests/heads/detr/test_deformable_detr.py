"""Deformable heads: attention masks of queries, their initial boxes, and gradients of every weight."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from vitdense.errors import ConfigError
from vitdense.heads.detr.deformable_detr import DeformableDetrHead
from vitdense.heads.detr.detr import DetrHead
from vitdense.heads.detr.predictors import BoxDecoding
from vitdense.heads.detr.queries import INVALID_LOGIT, QuerySelection
from vitdense.ops.boxes import iou, to_xyxy
from vitdense.types import DenoisingQueries, Features

SMALL = dict(channels=16, num_heads=2, ffn_dim=16, num_encoder_layers=1, num_decoder_layers=2, dropout=0.0)
SMALL |= dict(num_queries=6, num_levels=2)
MIXED = QuerySelection(content='learned', class_agnostic=False)
DINO = dict(selection=MIXED, denoising=True)
DINO |= dict(decoding=BoxDecoding(anchors=True, look_forward_twice=True, final_norm=True))
REAL_TIME = BoxDecoding(anchors=True, refine=False, relative=True, final_norm=True)
SELECTED = QuerySelection(content='selected', class_agnostic=False)
HEADS = {
    'learned': {},
    'anchors': dict(decoding=BoxDecoding(anchors=True), denoising=True),
    'encoded': dict(selection=QuerySelection(), denoising=True),
    'mixed': dict(selection=QuerySelection(content='learned')),
    'selected': dict(selection=SELECTED),
    'dense': dict(selection=replace(SELECTED, dense=True)),
    'distinct': dict(selection=replace(SELECTED, max_iou=0.5)),
    'dino': DINO,
    'real-time': dict(selection=replace(MIXED, learned_box_deltas=True), decoding=REAL_TIME, denoising=True),
}


def head_of(name: str, **changes) -> DeformableDetrHead:
    head = DeformableDetrHead((12,), (16,), 5, **{**SMALL, **HEADS[name], **changes})
    for parameter in head.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return head


def features_of(height: int = 6, width: int = 8, valid: Tensor | None = None) -> Features:
    return Features(maps=(torch.randn(2, 12, height, width),), input_size=(16 * height, 16 * width), valid=valid)


def hints_of(objects: list[list[int]], groups: int = 2) -> DenoisingQueries:
    rows = torch.tensor(objects)
    boxes = 0.2 + 0.4 * torch.rand(*rows.shape, 4)
    return DenoisingQueries(torch.randint(5, rows.shape), boxes, rows, rows >= 0, groups)


@pytest.mark.parametrize('name', HEADS)
def test_before_training_nothing_is_likely_and_boxes_are_references(name):
    torch.manual_seed(1)
    head = DeformableDetrHead((12,), (16,), 5, **{**SMALL, **HEADS[name]}).train()
    outputs = head(features_of())
    stages = [outputs, *outputs.aux, *([] if outputs.proposals is None else [outputs.proposals])]
    for stage in stages:
        assert stage.class_logits.sigmoid().mean() < 0.05
    if outputs.proposals is not None and name not in ('encoded', 'mixed', 'dense'):
        torch.testing.assert_close(outputs.boxes, outputs.proposals.boxes)
        sides = outputs.boxes[..., 2:]
        assert ((sides - 0.05).abs() < 1e-4).logical_or((sides - 0.1).abs() < 1e-4).all()
    if name == 'learned':
        torch.testing.assert_close(outputs.boxes[..., 2:], torch.full((2, 6, 2), -2.0).sigmoid())


def test_the_best_cells_are_selected():
    head = head_of('selected').eval()
    features = features_of()
    with torch.no_grad():
        levels = head.encoder(head.project(features))
        scores = head.queries.class_predictors[0](head.queries.transforms[0](levels.tokens)).amax(-1)
        best = scores.topk(6).indices
        wanted = levels.centers().expand(2, -1, -1).gather(1, best[..., None].expand(-1, -1, 2))
        (
            head.queries.box_predictors[0].linears[-1].weight.zero_(),
            head.queries.box_predictors[0].linears[-1].bias.zero_(),
        )
        queries, _ = head.queries(levels, 1)
    torch.testing.assert_close(queries.references[..., :2], wanted)
    assert queries.references.dtype == torch.float32


def test_queries_start_at_distinct_boxes_where_enough_cells_have_some():
    head = head_of('distinct').eval()
    nn.init.zeros_(head.queries.box_predictors[0].linears[-1].weight)
    bias = head.queries.box_predictors[0].linears[-1].bias
    with torch.no_grad():
        bias.copy_(torch.tensor([0.0, 0.0, 2.0, 2.0]))  # boxes of cells beside each other overlap by more than 0.3
        levels = head.encoder(head.project(features_of()))
        head.queries.max_iou = 0.3
        references = head.queries(levels, 1)[0].references
        head.queries.max_iou = None
        repeated = head.queries(levels, 1)[0].references
    ious = [iou(to_xyxy(each[:, :, None]), to_xyxy(each[:, None])).triu(1) for each in (references, repeated)]
    assert ious[0].max() <= 0.3 < ious[1].max()
    assert torch.equal(references[:, 0], repeated[:, 0]), 'the best cell stays the best'


@pytest.mark.parametrize('name', HEADS)
def test_more_queries_than_cells_begin_with_the_whole_image(name):
    head = head_of(name, num_queries=30).eval()
    with torch.no_grad():
        outputs = head(features_of(2, 3))
        assert outputs.boxes.shape == (2, 30, 4) and outputs.boxes.isfinite().all()
        if 'selection' in HEADS[name] and not HEADS[name]['selection'].learned_box_deltas:
            queries, _ = head.queries(head.project(features_of(2, 3)), 1)
            rest = queries.references[:, 2 * 3 + 1 * 2 :]
            torch.testing.assert_close(rest, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand_as(rest))


def test_padding_never_proposes():
    valid = torch.zeros(2, 96, 128, dtype=torch.bool)
    valid[0], valid[1, :32, :48] = True, True
    proposals = head_of('encoded').train()(features_of(valid=valid)).proposals
    assert proposals.class_logits.shape == (2, 6 * 8 + 3 * 4, 1)  # every cell, one logit
    received = proposals.class_logits[..., 0] != INVALID_LOGIT
    assert received.sum(1).tolist() == [6 * 8 + 3 * 4, 2 * 3 + 1 * 2]
    assert not proposals.boxes[~received].any()


def test_every_cell_proposes_all_classes_and_the_best_are_as_without():
    dense, features = head_of('dense').train(), features_of()
    sparse = head_of('selected').train()
    sparse.load_state_dict(dense.state_dict())
    predictions, chosen = dense(features), sparse(features)
    assert predictions.proposals.class_logits.shape == (2, 6 * 8 + 3 * 4, 5) and chosen.proposals.boxes.shape == (
        2,
        6,
        4,
    )
    torch.testing.assert_close(predictions.class_logits, chosen.class_logits)
    torch.testing.assert_close(predictions.boxes, chosen.boxes)
    predictions.proposals.class_logits[:, -1].sum().backward()  # a cell that was not selected learns as well
    assert dense.queries.class_predictors[0].weight.grad.any()


def test_groups_do_not_attend_to_each_other_and_one_is_used_in_evaluation():
    head = head_of('real-time', groups=3).train()
    features = features_of()
    with torch.no_grad():
        before = head(features)
        assert before.groups == 3 and before.boxes.shape == (2, 18, 4) and before.proposals.boxes.shape == (2, 18, 4)
        head.queries.content[6:12] += 1
        after = head(features)
        alone = head.eval()(features)
    changed = (before.class_logits - after.class_logits).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False] * 6 + [True] * 6 + [False] * 6
    assert alone.groups == 1
    torch.testing.assert_close(alone.class_logits, before.class_logits[:, :6])
    torch.testing.assert_close(alone.boxes, before.boxes[:, :6])


@pytest.mark.parametrize('name', ['anchors', 'encoded', 'dino', 'real-time'])
def test_noised_queries_are_attended_to_by_their_own_group_only(name):
    head = head_of(name, groups=2).train()
    features, denoising_queries = features_of(), hints_of([[0, 1, 0, 1], [0, -1, 0, -1]])
    other = hints_of([[0, 1, 0, 1], [0, -1, 0, -1]])
    labels, boxes = denoising_queries.labels.clone(), denoising_queries.boxes.clone()
    labels[:, 2:], boxes[:, 2:] = other.labels[:, 2:], other.boxes[:, 2:]  # another second group
    labels[1, 1], boxes[1, 1] = 4, 0.9  # other filler
    with torch.no_grad():
        without = head(features)
        one, two = (
            head(features, denoising_queries=denoising_queries),
            head(features, denoising_queries=denoising_queries._replace(labels=labels, boxes=boxes)),
        )
    for outputs in (one, two):
        torch.testing.assert_close(outputs.class_logits, without.class_logits)
        torch.testing.assert_close(outputs.boxes, without.boxes)
    torch.testing.assert_close(one.denoising.boxes[0, :2], two.denoising.boxes[0, :2])
    torch.testing.assert_close(one.denoising.boxes[1, 0], two.denoising.boxes[1, 0])
    assert (one.denoising.boxes[:, 2] - two.denoising.boxes[:, 2]).abs().max() > 1e-4
    assert (
        one.denoising_queries is denoising_queries
        and len(one.denoising.aux) == 1
        and one.denoising.class_logits.shape == (2, 4, 5)
    )


def test_every_weight_has_a_gradient_with_and_without_hints():
    head = head_of('dino').train()
    for denoising_queries in (None, hints_of([[0, 1], [-1, -1]], groups=1)):
        head.zero_grad(set_to_none=True)
        outputs = head(features_of(), denoising_queries=denoising_queries)
        stages = [outputs, *outputs.aux, outputs.proposals, *([] if denoising_queries is None else [outputs.denoising])]
        sum(stage.class_logits.square().sum() + stage.boxes.square().sum() for stage in stages).backward()
        assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize('twice', [False, True])
def test_looking_forward_twice_trains_the_box_predictor_of_the_layer_before_and_no_earlier_one(twice):
    # DINO, models/dino/deformable_transformer.py and dino.py: new_ref = step(ref.detach(), delta); layer k predicts
    # delta_k + inverse_sigmoid(new_ref of k - 1)
    decoding = replace(DINO['decoding'], look_forward_twice=twice)
    head = head_of('dino', decoding=decoding, num_decoder_layers=4).train()
    last = head(features_of())
    for layer, outputs in enumerate((*last.aux, last)):
        head.zero_grad()
        outputs.boxes.sum().backward(retain_graph=True)
        gradients = [predictor.linears[-1].weight.grad for predictor in head.decoder.box_predictors]
        reached = [index for index, gradient in enumerate(gradients) if gradient is not None and gradient.any()]
        assert reached == ([layer - 1, layer] if twice and layer else [layer])


def test_looking_forward_twice_changes_gradients_alone():
    heads = []
    for twice in (False, True):
        torch.manual_seed(3)
        decoding = replace(DINO['decoding'], look_forward_twice=twice)
        heads.append(head_of('dino', decoding=decoding, num_decoder_layers=3).train())
    features = features_of()
    once, twice = (head(features) for head in heads)
    for first, second in zip((*once.aux, once), (*twice.aux, twice), strict=True):
        assert torch.equal(first.boxes, second.boxes) and torch.equal(first.class_logits, second.class_logits)


@pytest.mark.parametrize('name', ['learned', 'dino', 'real-time'])
def test_boxes_stay_float32_under_autocast(name):
    head = head_of(name).eval()
    features = features_of()
    with torch.no_grad():
        whole = head(features)
        with torch.autocast('cpu', torch.bfloat16):
            half = head(features)
    assert half.boxes.dtype == torch.float32 and half.class_logits.dtype == torch.bfloat16
    if name == 'learned':  # a selection may change
        assert (half.boxes - whole.boxes).abs().max() < 0.02


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(denoising=True), 'needs queries that are boxes'),
        (dict(decoding=BoxDecoding(relative=True)), 'needs queries that are boxes'),
        (dict(norm='none'), 'takes maps as they are'),
        (dict(num_levels=0), 'is less than'),
        (dict(num_heads=3), 'do not divide'),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeformableDetrHead((12,), (16,), 5, **{**SMALL, **options})


def test_looking_forward_twice_needs_refined_boxes_and_contents_are_a_choice():
    with pytest.raises(ValueError, match='needs refine'):
        BoxDecoding(look_forward_twice=True, refine=False)
    with pytest.raises(ConfigError, match='QuerySelection.content = .mixed'):
        QuerySelection(content='mixed')


def test_denoising_queries_are_refused_by_heads_without_denoising():
    denoising_queries = hints_of([[0], [0]], groups=1)
    for head in (head_of('learned'), DetrHead((12,), (16,), 5, channels=16, num_heads=2)):
        with pytest.raises(ConfigError, match='denoising'):
            head(features_of(), denoising_queries=denoising_queries)


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would have to be waited for."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        assert name not in ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select', 'unique'), name
        assert name != 'index' or not any(x is not None and x.dtype == torch.bool for x in args[1]), name
        return operator(*args, **(kwargs or {}))


def test_no_part_of_a_training_step_waits_for_the_device():
    valid = functional.pad(torch.ones(2, 64, 96, dtype=torch.bool), (0, 32, 0, 32))
    head = head_of('dino').train()
    features, denoising_queries = features_of(valid=valid), hints_of([[0, 1], [0, -1]], groups=1)
    with NoWaiting():
        outputs = head(features, denoising_queries=denoising_queries)
        (outputs.boxes.sum() + outputs.denoising.boxes.sum()).backward()


class HeadOutputs(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.head(Features(maps=(x,), input_size=(16 * x.shape[2], 16 * x.shape[3])))
        return outputs.class_logits, outputs.boxes


@pytest.mark.parametrize('name', ['detr', 'dino'])
def test_an_exported_head_runs_on_other_batches_and_sizes(name):
    if name == 'detr':
        head = DetrHead((12,), (16,), 5, channels=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
    else:
        head = head_of('dino', num_decoder_layers=1, num_levels=1)
    model = HeadOutputs(head).eval()
    sides = {axis: torch.export.Dim(side, min=4, max=40) for axis, side in ((2, 'rows'), (3, 'columns'))}
    free = {'x': {0: torch.export.Dim('batch', min=1, max=8), **sides}}
    program = torch.export.export(model, (torch.randn(2, 12, 6, 8),), dynamic_shapes=free).module()
    x = torch.randn(3, 12, 9, 7)
    torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-4)
