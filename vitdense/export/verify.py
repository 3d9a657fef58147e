"""Compare an exported graph with the model that it was made from: outputs, predictions and time, image by image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_iou

from vitdense.types import ImageClass, Instances, Outputs, Prediction, QueryOutputs, SemanticMap

MIN_SCORE = 0.05  # of an object that is compared
SAME_EDGE = 0.01  # pixels between the edges of two boxes that are equal whatever their IoU
ROUNDS = 5
STAGES = ('preprocess', 'network', 'postprocess')
Level = Literal['exact', 'close', 'coarse']


class Tolerance(NamedTuple):
    """How far a graph may be from the model."""

    output: float | None  # largest difference of an output relative to its largest magnitude, where that is above 1
    iou: float  # of boxes that are equal
    score: float  # difference of scores that are equal
    share: float  # of the predictions of a head that have to be equal


TOLERANCES: dict[Level, Tolerance] = {
    'exact': Tolerance(1e-3, 0.99, 1e-3, 0.0),  # float32
    'close': Tolerance(None, 0.9, 0.02, 0.97),  # float16, and another order of resizing and rounding
    'coarse': Tolerance(None, 0.7, 0.1, 0.9),  # int8
}


class OutputDifference(NamedTuple):
    """How far an output of the graph is from the model's."""

    name: str
    largest: float
    mean: float
    scale: float  # the largest magnitude of the output, at least 1
    tolerance: float | None  # times `scale`; None: only predictions have to agree

    @property
    def passed(self) -> bool:
        return self.tolerance is None or self.largest <= self.tolerance * self.scale


class Agreement(NamedTuple):
    """How many predictions of a head are the same."""

    head: str
    what: str  # pixels, objects or images
    same: int
    total: int
    least: float  # share that has to be equal

    @property
    def passed(self) -> bool:
        return self.share >= self.least

    @property
    def share(self) -> float:
        return self.same / self.total if self.total else 1.0


class Verdict(NamedTuple):
    """The comparison of a graph with its model."""

    images: int
    outputs: list[OutputDifference]
    heads: list[Agreement]
    seconds: dict[str, dict[str, float]]  # median time of an image in each stage: {'torch' | 'graph': {stage: seconds}}
    level: Level

    @property
    def passed(self) -> bool:
        return all(each.passed for each in (*self.outputs, *self.heads))

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as json holds it."""
        return {
            'passed': self.passed,
            'images': self.images,
            'level': self.level,
            'tolerance': TOLERANCES[self.level]._asdict(),
            'outputs': [output._asdict() for output in self.outputs],
            'heads': [head._asdict() for head in self.heads],
            'seconds': self.seconds,
        }


class Side(NamedTuple):
    """One of two that are compared."""

    network: nn.Module
    batches: Sequence[Tensor]  # of one image each, (1, 3, H, W), as the network takes it
    read: Callable[[dict[str, Outputs], int], dict[str, Prediction]]  # of the outputs of the batch with that number
    prepare: Callable[[], Tensor] | None = None  # the first batch again, from the pixels of its image, to time it


@torch.inference_mode()
def compare(model: Side, graph: Side, level: Level = 'exact') -> Verdict:
    """Return the verdict on `graph`, whose images are those of `model`."""
    tolerance = TOLERANCES[level]
    differences: dict[str, list[tuple[float, float, float]]] = {}  # largest, mean, magnitude of each image
    same: dict[str, list[int]] = {}
    for number, (imgs, others) in enumerate(zip(model.batches, graph.batches, strict=True)):
        theirs, ours = model.network(imgs), graph.network(others)
        predictions = model.read(theirs, number), graph.read(ours, number)
        for head, outputs in ours.items():
            for name, expected, actual in _pairs(head, theirs[head], outputs):
                gap = (expected - actual).abs()
                row = gap.max().item(), gap.mean().item(), expected.abs().max().item()
                differences.setdefault(name, []).append(row)
            equal, total = equal_predictions(predictions[0][head], predictions[1][head], tolerance)
            count = same.setdefault(head, [0, 0])
            count[0], count[1] = count[0] + equal, count[1] + total
    outputs = []
    for name, rows in differences.items():
        largest, means, magnitudes = zip(*rows, strict=True)
        scale = max(1.0, *magnitudes)
        outputs.append(OutputDifference(name, max(largest), statistics.mean(means), scale, tolerance.output))
    kinds = {head: _what(predictions[1][head]) for head in same}
    heads = [Agreement(head, kinds[head], *count, tolerance.share) for head, count in same.items()]
    return Verdict(len(model.batches), outputs, heads, _times(model, graph), level)


def equal_predictions(
    first: Prediction, second: Prediction, tolerance: Tolerance = TOLERANCES['exact']
) -> tuple[int, int]:
    """Return how many predictions are equal, and of how many: pixels, objects, or the class of the image."""
    if isinstance(first, SemanticMap):
        return int((first.labels == second.labels).sum()), first.labels.numel()
    if isinstance(first, ImageClass):
        return int(first.scores.argmax() == second.scores.argmax()), 1
    return _equal_objects(first, second, tolerance)


def _equal_objects(first: Instances, second: Instances, tolerance: Tolerance) -> tuple[int, int]:
    """Match objects above `MIN_SCORE` one to one by box and class, and count those with equal scores."""
    kept = [objects.select(objects.scores >= MIN_SCORE) for objects in (first, second)]
    total = max(len(objects.scores) for objects in kept)
    if not min(len(objects.scores) for objects in kept):
        return 0, total
    gaps = (kept[0].boxes[:, None] - kept[1].boxes).abs().amax(-1)  # boxes outside the image are clipped: IoU is 0 / 0
    equal = (box_iou(kept[0].boxes, kept[1].boxes) >= tolerance.iou) | (gaps <= SAME_EDGE)
    equal &= kept[0].labels[:, None] == kept[1].labels
    equal &= (kept[0].scores[:, None] - kept[1].scores).abs() <= tolerance.score
    rows, columns = linear_sum_assignment(equal.cpu().numpy(), maximize=True)
    return int(equal[rows, columns].sum()), total


def _pairs(head: str, expected: Outputs, actual: Outputs) -> list[tuple[str, Tensor, Tensor]]:
    """Return the tensors of both under their names; queries, which may be in another order, are matched first."""
    if type(expected) is not type(actual):  # the graph gives predictions
        return []
    if isinstance(expected, QueryOutputs):
        rows = torch.cat([_queries(expected, row) for row in range(len(expected.class_logits))])
        others = torch.cat([_queries(actual, row) for row in range(len(actual.class_logits))])
        first, second = linear_sum_assignment(torch.cdist(rows, others, p=float('inf')).cpu().numpy())
        classes = expected.class_logits.shape[-1]
        pairs = [(f'{head}.class_logits', rows[first, :classes], others[second, :classes])]
        if expected.boxes is not None:
            pairs.append((f'{head}.boxes', rows[first, classes:][:, :4], others[second, classes:][:, :4]))
        if expected.mask_logits is not None:
            masks = expected.mask_logits.flatten(0, 1)[first], actual.mask_logits.flatten(0, 1)[second]
            pairs.append((f'{head}.mask_logits', *masks))
        return pairs
    fields = [field for field, value in zip(expected._fields, expected, strict=True) if isinstance(value, Tensor)]
    return [(f'{head}.{field}', getattr(expected, field), getattr(actual, field)) for field in fields]


def _queries(outputs: QueryOutputs, row: int) -> Tensor:
    """Return (Q, K + 4) logits and boxes of the queries of an image."""
    parts = [outputs.class_logits[row]] + ([] if outputs.boxes is None else [outputs.boxes[row]])
    return torch.cat(parts, dim=-1).float()


def _what(prediction: Prediction) -> str:
    return {SemanticMap: 'pixels', ImageClass: 'images', Instances: 'objects'}[type(prediction)]


def _times(model: Side, graph: Side) -> dict[str, dict[str, float]]:
    """Return the median seconds of each stage of both with the first image, taken in turns."""
    rows: Mapping[str, list[tuple[float, ...]]] = {'torch': [], 'graph': []}
    for _ in range(ROUNDS):
        for name, side in (('torch', model), ('graph', graph)):
            times = [time.perf_counter()]
            imgs = side.batches[0] if side.prepare is None else side.prepare()
            times.append(time.perf_counter())
            outputs = side.network(imgs)
            times.append(time.perf_counter())
            side.read(outputs, 0)
            times.append(time.perf_counter())
            rows[name].append(tuple(end - start for start, end in pairwise(times)))
    return {
        name: dict(zip(STAGES, map(statistics.median, zip(*each, strict=True)), strict=True))
        for name, each in rows.items()
    }
