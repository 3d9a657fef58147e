"""Initial queries: learned, two-stage or denoising."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.arguments import check_choice
from vitdense.heads.detr.levels import FeatureLevels
from vitdense.heads.detr.position import sine_boxes
from vitdense.heads.detr.predictors import ApplyDeltas, BoxPredictor, class_predictor
from vitdense.ops.boxes import iou, to_xyxy
from vitdense.types import ClassLayer, DenoisingQueries, QueryOutputs

INVALID_LOGIT = -20.0  # logit of a cell that may not propose: its loss is negligible
SMALLEST = 0.05  # side of the boxes that cells of the finest level start from, as a share of the image
CANDIDATES = 4  # times the queries: cells whose boxes are compared
REPEATED = -1e4  # added to the logit of a cell whose box repeats another
MARGIN = 0.01  # cells whose middle is nearer to the edge than this do not propose


class Queries(NamedTuple):
    """Input queries of a decoder."""

    content: Tensor  # (B, Q, C)
    references: Tensor  # (B, Q, 2) points or (B, Q, 4) cxcywh, in [0, 1] of each image
    positions: Tensor | None  # (B, Q, C); None: encoded from `references`


class LearnedQueries(nn.Module):
    """Queries that are the same for every image.

    Without `anchors`, learned positions from which a linear layer reads points (Deformable-DETR, Zhu et al. 2021,
    section 4.1); with `anchors`, learned boxes (DAB-DETR, Liu et al. 2022, section 4.2).
    """

    def __init__(self, channels: int, num_queries: int, groups: int, *, anchors: bool) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.content = nn.Parameter(torch.randn(num_queries * groups, channels))
        self.anchors = nn.Parameter(torch.rand(num_queries * groups, 4).logit(eps=1e-3)) if anchors else None
        self.positions = None if anchors else nn.Parameter(torch.randn(num_queries * groups, channels))
        self.points = None if anchors else nn.Linear(channels, 2)
        if self.points is not None:
            nn.init.xavier_uniform_(self.points.weight)
            nn.init.zeros_(self.points.bias)

    def forward(self, levels: FeatureLevels, groups: int) -> tuple[Queries, None]:
        """Return the queries of the first `groups` groups, and no proposals."""
        shape = (levels.tokens.shape[0], -1, -1)
        rows = slice(self.num_queries * groups)
        content = self.content[rows].expand(shape)
        if self.anchors is not None:
            return Queries(content, self.anchors[rows].float().sigmoid().expand(shape), None), None
        positions = self.positions[rows]
        points = self.points(positions).float().sigmoid()
        return Queries(content, points.expand(shape), positions.expand(shape)), None


class BoxEncoding(nn.Module):
    """The sine encoding of boxes through a linear layer and a norm: positions, and `with_content` also content."""

    def __init__(self, channels: int, *, with_content: bool) -> None:
        super().__init__()
        self.channels = channels
        self.linear = nn.Linear(2 * channels, channels * (2 if with_content else 1))
        self.norm = nn.LayerNorm(self.linear.out_features)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, boxes_cxcywh: Tensor) -> tuple[Tensor, ...]:
        """Return positions (B, Q, C), and content (B, Q, C) where there is some, of boxes (B, Q, 4)."""
        encoded = sine_boxes(boxes_cxcywh, self.channels // 2)  # (B, Q, 2 * C)
        return self.norm(self.linear(encoded.to(self.linear.weight.dtype))).split(self.channels, dim=-1)


@dataclass(frozen=True, kw_only=True)
class QuerySelection:
    """The first stage of a two-stage detector, which selects the cells where queries start.

    `content` of a selected query: 'encoded', the encoding of its box (Deformable-DETR, appendix A.4); 'learned', the
    same for every image, by rank (mixed selection of DINO, Zhang et al. 2022, section 3.4); 'selected', the feature of
    its cell (pure query selection, ibid.). Proposals have one logit when `class_agnostic` (Deformable-DETR), else
    `num_classes` (DINO); their loss is over every cell when `dense`, else over the selected ones (None: dense where
    class-agnostic). `learned_box_deltas` adds learned deltas to each proposal, by rank (LW-DETR). With `max_iou` a cell
    is passed over whose box overlaps that of a better one by more: queries start at distinct objects (DDQ, Zhang et al.
    2023, https://arxiv.org/abs/2303.12776, section 3.3).
    """

    content: Literal['encoded', 'learned', 'selected'] = 'encoded'
    class_agnostic: bool = True
    dense: bool | None = None
    learned_box_deltas: bool = False
    max_iou: float | None = None

    def __post_init__(self) -> None:
        check_choice('QuerySelection.content', self.content, ('encoded', 'learned', 'selected'))


class SelectedQueries(nn.Module):
    """Queries that start at the cells of the highest first-stage scores (two-stage Deformable-DETR, appendix A.4).

    Every cell proposes a class and a box, which is predicted as deltas from a square at its centre whose size doubles
    from level to level; queries start from the `num_queries` best proposals, as `selection` says. `anchors` leaves
    positions to the decoder, which encodes the references itself. Each group has a first stage of its own, trained by
    the same cells.

    Cells of padding, and those whose middle is within 1 % of the image's edge, do not propose. Where fewer cells may
    propose than queries are wanted, the rest of the queries starts from the whole image.

    Proposals, in training only, are given group after group. A cell that may not propose has logits of `INVALID_LOGIT`
    and an empty box.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_queries: int,
        groups: int,
        apply_deltas: ApplyDeltas,
        selection: QuerySelection,
        *,
        anchors: bool,
    ) -> None:
        super().__init__()
        self.num_queries, self.apply_deltas, self.max_iou = num_queries, apply_deltas, selection.max_iou
        class_agnostic, content = selection.class_agnostic, selection.content
        self.dense = class_agnostic if selection.dense is None else selection.dense
        self.transforms = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)) for _ in range(groups)
        )
        for linear, _ in self.transforms:
            nn.init.xavier_uniform_(linear.weight)
        num_logits = 1 if class_agnostic else num_classes
        self.class_predictors = nn.ModuleList(class_predictor(channels, num_logits) for _ in range(groups))
        predictors = () if class_agnostic else range(groups)
        self.class_layers = tuple(ClassLayer(f'class_predictors.{group}') for group in predictors)
        self.box_predictors = nn.ModuleList(BoxPredictor(channels) for _ in range(groups))
        self.content_kind = content
        rows = num_queries * groups
        self.content = nn.Parameter(torch.randn(rows, channels)) if content == 'learned' else None
        self.box_deltas = nn.Parameter(torch.zeros(rows, 4)) if selection.learned_box_deltas else None
        self.encoding = None
        if not anchors or content == 'encoded':
            self.encoding = BoxEncoding(channels, with_content=content == 'encoded')
        self.anchors = anchors

    def forward(self, levels: FeatureLevels, groups: int) -> tuple[Queries, QueryOutputs | None]:
        """Return the queries of the first `groups` groups, and in training the proposals that they were chosen from."""
        starts, may_propose = starting_boxes(levels)
        chosen = [self._propose(group, levels.tokens, starts, may_propose) for group in range(groups)]
        references, features, logits, boxes = (
            None if parts[0] is None else torch.cat(parts, dim=1) for parts in zip(*chosen, strict=True)
        )
        if self.box_deltas is not None:
            references = self.apply_deltas(references, self.box_deltas[: references.shape[1]].float())
        proposals = QueryOutputs(logits, boxes=boxes, groups=groups) if self.training else None
        return self._queries(references, features), proposals

    def positions_of(self, boxes_cxcywh: Tensor) -> Tensor | None:
        """Return the positions (B, Q, C) of queries that start from boxes (B, Q, 4); None where the decoder encodes."""
        return None if self.anchors else self.encoding(boxes_cxcywh)[0]

    def _propose(
        self, group: int, tokens: Tensor, starts: Tensor, may_propose: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return references (B, Q, 4) and features (B, Q, C) of the best cells, and logits and boxes of proposals."""
        predict_boxes = self.box_predictors[group]
        x = self.transforms[group](tokens)
        logits = self.class_predictors[group](x)  # (B, S, num_logits)
        starts = starts.expand(x.shape[0], -1, -1)
        scores = logits.detach().amax(-1).masked_fill(~may_propose, float('-inf'))
        everywhere = None
        if self.max_iou is not None or (self.training and self.dense):
            everywhere = self.apply_deltas(starts, predict_boxes(x))
        if self.max_iou is not None:
            scores = self._demote_repeated(scores, everywhere.detach())
        rows, valid_rows = self._best(scores)
        features = _rows(x, rows)
        if self.training and self.dense:
            boxes = _rows(everywhere, rows)
            logits, proposed = _mask_invalid(logits, everywhere, may_propose.expand(x.shape[:2]))
        else:
            boxes = self.apply_deltas(_rows(starts, rows), predict_boxes(features))
            logits, proposed = _mask_invalid(_rows(logits, rows), boxes, valid_rows) if self.training else (None, None)
        boxes, lost = boxes.detach(), ~valid_rows[..., None]
        whole = torch.cat([boxes[..., :2].masked_fill(lost, 0.5), boxes[..., 2:].masked_fill(lost, 1.0)], dim=-1)
        return whole, features.detach().masked_fill(lost, 0.0), logits, proposed

    def _demote_repeated(self, scores: Tensor, boxes_cxcywh: Tensor) -> Tensor:
        """Return `scores` (B, S), below all others for cells whose boxes (B, S, 4) repeat that of a better one."""
        best, rows = scores.topk(min(CANDIDATES * self.num_queries, scores.shape[1]))
        boxes = to_xyxy(_rows(boxes_cxcywh, rows))
        repeated = iou(boxes[:, :, None], boxes[:, None]).triu(1).amax(1) > self.max_iou  # (B, candidates)
        return scores.scatter(1, rows, torch.where(repeated, best + REPEATED, best))

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows (B, Q) of the best of `scores` (B, S), and whether each is a cell that may propose."""
        num_cells = scores.shape[1]
        if num_cells < self.num_queries:
            scores = functional.pad(scores, (0, self.num_queries - num_cells), value=float('-inf'))
        best, rows = scores.topk(self.num_queries)
        return rows.clamp(max=num_cells - 1), best > float('-inf')

    def _queries(self, references: Tensor, features: Tensor) -> Queries:
        encoded = (None, None) if self.encoding is None else self.encoding(references)
        contents = {'selected': features, 'encoded': encoded[-1]}
        if self.content is not None:
            contents['learned'] = self.content[: references.shape[1]].expand(references.shape[0], -1, -1)
        return Queries(contents[self.content_kind], references, None if self.anchors else encoded[0])


class NoisedQueries(nn.Module):
    """Denoising queries: noised boxes, and an embedding of the noised class (DN-DETR, Li et al. 2022, section 4.2).

    The embedding has `num_classes` + 1 rows, as in DINO; the last one is that of filler.
    """

    class_layers = (ClassLayer('labels', num_extra=1),)

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_classes + 1, channels)

    def forward(
        self, queries: Queries, denoising_queries: DenoisingQueries | None, positions: Tensor | None
    ) -> Queries:
        """Return `queries` with those of `denoising_queries`, at `positions`, behind them."""
        if denoising_queries is None:  # distributed training waits for a gradient of every parameter
            return queries._replace(content=queries.content + 0.0 * self.labels.weight.sum())
        filler = self.labels.num_embeddings - 1
        content = self.labels(denoising_queries.labels.masked_fill(denoising_queries.objects < 0, filler))
        return Queries(
            torch.cat([queries.content, content], dim=1),
            torch.cat([queries.references, denoising_queries.boxes.float()], dim=1),
            None if positions is None else torch.cat([queries.positions, positions], dim=1),
        )


def self_attention_mask(num_queries: int, groups: int, denoising_queries: DenoisingQueries) -> Tensor:
    """Return the mask (B, 1, Q, Q) bool of self-attention, True = may attend, of queries followed by those of
    `denoising_queries`.

    A query attends to its own of `groups` groups of `num_queries`; a noised one to its own group of noised queries and
    to the first group of the others. Those attend to no noised query, as these are made from the targets (DN-DETR,
    section 4.4). A filler query is attended to by itself only.
    """
    num_noised, device = denoising_queries.labels.shape[1], denoising_queries.labels.device
    own = torch.arange(num_queries * groups, device=device) // num_queries
    noised = torch.arange(num_noised, device=device) // (num_noised // denoising_queries.groups) + groups
    group = torch.cat([own, noised])
    allowed = (group[:, None] == group) | ((group[:, None] >= groups) & (group == 0))  # (Q, Q)
    real = functional.pad(denoising_queries.objects >= 0, (len(own), 0), value=True)
    itself = torch.eye(len(group), dtype=torch.bool, device=device)
    return ((allowed & real[:, None]) | itself)[:, None]


def starting_boxes(levels: FeatureLevels) -> tuple[Tensor, Tensor]:
    """Return the boxes (B or 1, S, 4) cxcywh that cells start from, and (B or 1, S) whether they may propose."""
    centers = levels.centers()
    sizes = [
        torch.full((height * width, 2), min(SMALLEST * 2**level, 16 * SMALLEST), device=centers.device)
        for level, (height, width) in enumerate(levels.grids)
    ]
    may_propose = ((centers > MARGIN) & (centers < 1 - MARGIN)).all(-1)  # the middles of padding are beyond 1
    return torch.cat([centers, torch.cat(sizes).expand_as(centers)], dim=-1), may_propose


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return (B, Q, C): the `rows` (B, Q) of `x` (B, S, C)."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def _mask_invalid(logits: Tensor, boxes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return `logits` and `boxes` with constants, without loss and gradient, where `valid` (B, N) is False."""
    return logits.masked_fill(~valid[..., None], INVALID_LOGIT), boxes.masked_fill(~valid[..., None], 0.0)
