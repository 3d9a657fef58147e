"""Preprocessing and predictions inside an exported graph, and how predictions of a graph are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdense.data.transforms.common import Pipeline, ResizeTo
from vitdense.errors import ExportError
from vitdense.model import DenseModel
from vitdense.ops.boxes import to_original
from vitdense.ops.resample import filter_weights
from vitdense.protocols import GraphTask
from vitdense.types import ImageClass, Instances, Meta, Prediction, SemanticMap


class Preprocessing(nn.Module):
    """Images (B, 3, H, W) uint8 of any size to what a network takes: resized, normalised, padded to whole patches."""

    def __init__(self, network: Any, resize: ResizeTo | None) -> None:
        super().__init__()
        self.register_buffer('mean', torch.tensor(network.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer('std', torch.tensor(network.std).view(1, 3, 1, 1) * 255)
        self.divisor, self.resize = network.divisor, resize

    def forward(self, images: Tensor) -> Tensor:
        imgs = images.float()
        if self.resize is not None:
            sides = zip(self.resize.size, images.shape[-2:], strict=True)
            rows, columns = (filter_weights(*each, like=imgs, antialias=self.resize.antialias) for each in sides)
            imgs = (rows @ imgs @ columns.T).round()  # images have whole gray levels
        imgs = (imgs - self.mean) / self.std
        bottom, right = (-side % self.divisor for side in imgs.shape[-2:])
        return functional.pad(imgs, (0, right, 0, bottom))


def preprocessing_of(model: DenseModel, transforms: Sequence[Any]) -> Preprocessing:
    """Return the preprocessing of a model whose evaluation transforms are none, or one resize to a size.

    Raises ExportError for other transforms.
    """
    steps = Pipeline(transforms).transforms
    if model.tiler is not None or len(steps) > 1 or not all(type(step) is ResizeTo for step in steps):
        names = ', '.join(type(step).__name__ for step in steps)
        raise ExportError(
            'the preprocessing cannot be in the graph',
            where='--inside preprocessing',
            why='the model predicts windows' if model.tiler is not None else f'its evaluation transforms are {names}',
            fix='leave preprocessing outside: a graph resizes to one size (ResizeTo) or not at all',
        )
    return Preprocessing(model.network, steps[0] if steps else None)


def check_tasks(model: DenseModel, heads: Sequence[str]) -> dict[str, GraphTask]:
    """Return the tasks of `heads`, whose predictions are to be in a graph. Raises ExportError where one cannot."""
    for head in heads:
        task = model.tasks[head]
        if model.tiler is not None or not isinstance(task, GraphTask):
            raise ExportError(
                f"the predictions of '{head}' cannot be in the graph",
                where='--inside predictions',
                why='the model joins those of windows'
                if model.tiler is not None
                else f'{type(task).__name__} has none',
                fix='export without --inside predictions, or other heads: --heads NAME,NAME',
            )
    return {head: model.tasks[head] for head in heads}


class GraphPredictions(NamedTuple):
    """Predictions that a graph gave for a batch, as `GraphTask` names them."""

    tensors: Mapping[str, Tensor]


class PredictionReader:
    """The task of a head whose predictions are made by the graph: it cuts and scales them to the original image."""

    def __init__(self, task: Any) -> None:
        self.field, self.datasets = task.field, task.datasets

    def loss(self, outputs: Any, targets: Sequence[Any]) -> dict[str, Tensor]:
        """Raise ExportError: a graph is not trained."""
        raise ExportError('a graph has no losses', where='loss', why='it is for inference', fix='train the model')

    def predict(self, outputs: GraphPredictions, metas: Sequence[Meta]) -> list[Prediction]:
        """Return one prediction for each image, in its original size."""
        rows = [{name: tensor[row] for name, tensor in outputs.tensors.items()} for row in range(len(metas))]
        return [_prediction(row, meta) for row, meta in zip(rows, metas, strict=True)]


def _prediction(fields: Mapping[str, Tensor], meta: Meta) -> Prediction:
    size, orig_size = meta.unpadded_size, meta.orig_size
    if 'map' in fields:
        labels = fields['map'][: size[0], : size[1]]
        if tuple(size) != tuple(orig_size):
            labels = functional.interpolate(labels[None, None].float(), orig_size, mode='nearest-exact')[0, 0]
        return SemanticMap(labels.to(fields['map'].dtype))
    if 'boxes' in fields:
        sizes = fields['boxes'].new_tensor([[size, orig_size]])  # (1, 2, 2)
        boxes = to_original(fields['boxes'][None], sizes[:, 0], sizes[:, 1])[0]
        return Instances(boxes, fields['scores'], fields['labels'].long())
    return ImageClass(fields['scores'])
