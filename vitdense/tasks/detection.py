"""Object detection: a set of boxes, each with a class and a score; non-maximum suppression is an option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from vitdense.arguments import check, check_ranges, label_source, within
from vitdense.errors import ExportError
from vitdense.ops.boxes import iou, scales_of, to_original, to_xyxy
from vitdense.protocols import ScoreMatcher
from vitdense.registry import build
from vitdense.tasks.denoising import Denoising
from vitdense.tasks.detection_losses import Focal, box_losses
from vitdense.tasks.losses import share_of_count
from vitdense.tasks.matching import (
    IGNORED,
    NO_OBJECT,
    HungarianMatcher,
    LayerPredictions,
    ObjectTargets,
    class_agnostic_labels,
    is_labelled,
)
from vitdense.types import DenoisingQueries, Instances, Meta, QueryOutputs, Target

OUTSIDE = 'export without --inside predictions'


class DetectionTask:
    """Train `QueryOutputs` on boxes with labels, and read `Instances` of the original image from them.

    `field` is the field of `Target` that holds the classes, and `datasets` names the data sets (`Meta.dataset`) whose
    images it trains on (None: all). `classification` is a part of `vitdense.tasks.detection_losses`, or its recipe:
    Focal (the default), Varifocal, IouAware, or SoftmaxCrossEntropy for heads with a last column, no object. `matcher`
    defaults to the costs that go with it (class 2, or 1 with softmax; L1 5, GIoU 2). The loss of a layer is that of
    its classes, plus `l1_weight` times the L1 distance and `giou_weight` times one minus the GIoU of matched boxes,
    both divided by the number of objects of all ranks. Crowds are never matched.

    Earlier decoder layers are matched and trained like the last one, in one `loss_aux` (times `aux_weight`); so are
    the proposals of a two-stage head in `loss_proposals` (times `proposal_weight`), where every object has
    `proposals_per_object` of them, and noised objects in `loss_denoising` (times `denoising_weight`, all layers), where
    `denoising` (a `Denoising`) makes them. `num_classes` is known from the data.

    `top_k` predictions are read from an image: the best pairs of query and class, or with softmax the best queries.
    With `nms_iou` those are left out that overlap a better one of their class by a larger IoU (non-maximum
    suppression), for detectors that were trained too briefly to have one query for each object.
    """

    def __init__(
        self,
        *,
        field: str = 'labels',
        datasets: Sequence[str] | None = None,
        num_classes: int | None = None,
        classification: object | dict | None = None,
        matcher: object | dict | None = None,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        aux_weight: float = 1.0,
        proposal_weight: float = 1.0,
        proposals_per_object: int = 1,
        denoising: Denoising | dict | None = None,
        denoising_weight: float = 1.0,
        top_k: int = 100,
        nms_iou: float | None = None,
    ) -> None:
        self.field, self.datasets = label_source('DetectionTask', field, datasets)
        self.num_classes = num_classes
        self.classification = Focal() if classification is None else build(classification)
        self.matcher = _matcher(matcher, self.classification.form)
        self.l1_weight, self.giou_weight = l1_weight, giou_weight
        self.aux_weight = aux_weight
        self.proposal_weight, self.proposals_per_object = proposal_weight, proposals_per_object
        self.denoising, self.denoising_weight = build(denoising), denoising_weight
        self.top_k, self.nms_iou = top_k, nms_iou
        within(nms_iou or 0, 0, 1, 'DetectionTask.nms_iou')
        weights = ('l1_weight', 'giou_weight', 'aux_weight', 'proposal_weight', 'denoising_weight')
        check_ranges(self, weights, 0)
        check_ranges(self, ('proposals_per_object', 'top_k'), 1)
        why = 'denoising replaces labels by random ones, and no data set has classes for the field'
        fix = 'give the model the classes of the data set, or write num_classes=...'
        check(self.denoising is None or num_classes is not None, 'DetectionTask.num_classes', None, why, fix)

    def training_inputs(self, targets: Sequence[Target], sizes: Tensor) -> DenoisingQueries | None:
        """Return noised objects of all images, whose boxes measure regions of `sizes` (B, 2); None without
        `denoising`.
        """
        if self.denoising is None:
            return None
        return self.denoising(ObjectTargets.of(targets, sizes), self.num_classes)

    def loss(self, outputs: QueryOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return `loss_class`, `loss_l1` and `loss_giou`, and `loss_aux`, `loss_proposals`, `loss_denoising` where the
        outputs have them.

        Images without labels are left out; in an image without objects all queries have the target no object.
        """
        labelled = [row for row, target in enumerate(targets) if is_labelled(target)]
        with torch.autocast(outputs.class_logits.device.type, enabled=False):
            outputs = rows_of(outputs, labelled)
            objects = ObjectTargets.of([targets[row] for row in labelled], outputs.sizes)
            queries = LayerPredictions.of(outputs)
            stages = [queries]
            if outputs.proposals is not None:
                stages.append(LayerPredictions.of(outputs.proposals, 'proposals'))
            rows = self.matcher(stages, objects, (1, self.proposals_per_object)[: len(stages)])
            noised = outputs.denoising_queries
            noised = objects.crowd.new_zeros(()).long() if noised is None else noised.positive.sum()
            num_boxes, num_noised = share_of_count(torch.stack([(~objects.crowd).sum(), noised]))

            layers = self._layers(queries, rows[0], objects, num_boxes * queries.groups)
            losses = {f'loss_{name}': values[-1] for name, values in layers.items()}
            if outputs.aux:
                losses['loss_aux'] = self.aux_weight * sum(values[:-1].sum() for values in layers.values())
            if outputs.proposals is not None:
                count = num_boxes * stages[1].groups * self.proposals_per_object
                losses['loss_proposals'] = self.proposal_weight * self._total(stages[1], rows[1], objects, count)
            if outputs.denoising is not None:
                noised = LayerPredictions.of(outputs.denoising, 'denoising')
                restored = _noised_rows(outputs.denoising_queries, objects).expand(noised.logits.shape[:3])
                losses['loss_denoising'] = self.denoising_weight * self._total(noised, restored, objects, num_noised)
        return losses

    @torch.no_grad()
    def predict(self, outputs: QueryOutputs, metas: Sequence[Meta]) -> list[Instances]:
        """Return the best objects of every image, with boxes in its original pixels, clipped to it."""
        scores, labels, queries = self._best(outputs.class_logits.float())
        boxes = to_xyxy(outputs.boxes.float().gather(1, queries[:, :, None].expand(-1, -1, 4)))
        sizes, orig_sizes = boxes.new_tensor([[meta.unpadded_size, meta.orig_size] for meta in metas]).unbind(1)
        boxes = to_original(boxes * scales_of(outputs.sizes)[:, None], sizes, orig_sizes)
        results = [Instances(*each) for each in zip(boxes, scores, labels, strict=True)]
        if self.nms_iou is None:
            return results
        return [each.select(batched_nms(*each[:3], self.nms_iou)) for each in results]  # best first

    def graph_predictions(
        self, outputs: QueryOutputs, extent: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return what `GraphTask` says. Raises ExportError with `nms_iou`."""
        if self.nms_iou is not None:
            why = 'non-maximum suppression keeps a different number of objects of each image'
            raise ExportError('predictions cannot be in the graph', where='DetectionTask.nms_iou', why=why, fix=OUTSIDE)
        scores, labels, queries = self._best(outputs.class_logits.float())
        boxes = to_xyxy(outputs.boxes.float().gather(1, queries[:, :, None].expand(-1, -1, 4)))
        covered, limits = (
            torch.stack([torch.full((), side, dtype=boxes.dtype, device=boxes.device) for side in reversed(sides)] * 2)
            for sides in (extent, size)
        )  # (4,)
        return {'boxes': torch.minimum((boxes * covered).clamp(min=0), limits), 'scores': scores, 'labels': labels}

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, labels and queries (B, N) of the best predictions, best first."""
        if self.classification.form == 'softmax':
            probs, labels = logits.softmax(-1)[..., :-1].max(-1)
            scores, queries = probs.topk(min(self.top_k, probs.shape[1]))
            return scores, labels.gather(1, queries), queries
        num_classes = logits.shape[-1]
        probs = logits.sigmoid().flatten(1)  # (B, Q, K) -> (B, Q * K)
        scores, indices = probs.topk(min(self.top_k, probs.shape[1]))
        return scores, indices % num_classes, indices // num_classes

    def _total(self, predictions: LayerPredictions, rows: Tensor, objects: ObjectTargets, num_boxes: Tensor) -> Tensor:
        return sum(values.sum() for values in self._layers(predictions, rows, objects, num_boxes).values())

    def _layers(
        self, predictions: LayerPredictions, rows: Tensor, objects: ObjectTargets, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted losses by kind, (L,) each. `rows` (L, B, Q) are the objects assigned to queries."""
        labels, wanted = _wanted(rows, objects, predictions.logits)
        positive = rows >= 0
        ious = iou(to_xyxy(predictions.boxes.detach()), to_xyxy(wanted)).where(positive, 0.0)
        distance, miss = box_losses(predictions.boxes, wanted, positive)
        return {
            'class': self.classification(predictions.logits, labels, ious, num_boxes),
            'l1': self.l1_weight * distance / num_boxes,
            'giou': self.giou_weight * miss / num_boxes,
        }


def rows_of(outputs: QueryOutputs, rows: Sequence[int]) -> QueryOutputs:
    """Return the outputs of some images only; of none, empty tensors that still depend on all parameters."""
    if len(rows) == len(outputs.class_logits):
        return outputs
    chosen = {}
    for name, value in outputs._asdict().items():
        if isinstance(value, Tensor):
            chosen[name] = value[list(rows)]
        elif isinstance(value, QueryOutputs):
            chosen[name] = rows_of(value, rows)
        elif isinstance(value, DenoisingQueries):
            chosen[name] = DenoisingQueries(*(field[list(rows)] for field in value[:-1]), value.groups)
    return outputs._replace(**chosen, aux=tuple(rows_of(layer, rows) for layer in outputs.aux))


def _noised_rows(denoising_queries: DenoisingQueries, objects: ObjectTargets) -> Tensor:
    """Return (B, D) int64: the row of `objects` that each noised query must restore, NO_OBJECT, or IGNORED for
    filler.
    """
    rows = torch.where(denoising_queries.positive, denoising_queries.objects + objects.starts[:, None], NO_OBJECT)
    return rows.masked_fill(denoising_queries.objects < 0, IGNORED)


def _wanted(rows: Tensor, objects: ObjectTargets, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets of queries: labels (L, B, Q), NO_OBJECT or IGNORED, and boxes (L, B, Q, 4) cxcywh."""
    labels, boxes = class_agnostic_labels(objects.labels, logits), objects.boxes
    labels, boxes = torch.cat([labels, labels.new_zeros(1)]), torch.cat([boxes, boxes.new_full((1, 4), 0.5)])
    indices = rows.clamp(min=-1)  # queries without an object read the last row, which stands for no object
    return labels[indices].where(rows >= 0, rows), boxes[indices]


def _matcher(matcher: Any, form: str) -> Any:
    """Return the matcher, or by default the one whose costs go with the classification loss. Raises ConfigError."""
    if matcher is None:
        return HungarianMatcher(class_weight=1.0 if form == 'softmax' else 2.0, form=form)
    matcher = build(matcher)
    own = matcher.form if isinstance(matcher, ScoreMatcher) else form
    fix = f"write matcher=dict(type=HungarianMatcher, form='{form}'), or leave the matcher out"
    check(own == form, 'DetectionTask.matcher.form', own, f'the classification loss reads logits by {form}', fix)
    return matcher
