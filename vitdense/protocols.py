"""Protocols: what parts must and may offer.

A part needs no base class, only the names of its protocol; `registry.check_part` compares them once, when a model is
built. Protocols that are `runtime_checkable` are optional abilities, which code tests with `isinstance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from vitdense.types import (
    Classifier,
    ClassLayer,
    Features,
    LayerRequest,
    MaskScores,
    Meta,
    Outputs,
    PixelOutputs,
    QueryOutputs,
    Target,
)


class Backbone(Protocol):
    """A ViT, or an adapter around one; `layers` of its `forward` are requests."""

    embed_dim: int
    depth: int  # number of blocks
    patch_size: int
    divisor: int  # inputs have sides that are multiples of it
    mean: Sequence[float]
    std: Sequence[float]

    def forward(self, imgs: Tensor, valid: Tensor | None = None, *, layers: Any) -> Features: ...


@runtime_checkable
class ClassTokenBackbone(Protocol):
    """A backbone that says whether its ViT has a class token."""

    has_cls: bool


@runtime_checkable
class PyramidBackbone(Protocol):
    """A backbone with a pyramid of its own in `Features.maps`."""

    out_channels: Sequence[int]
    strides: Sequence[float]


@runtime_checkable
class WrappingBackbone(Protocol):
    """An adapter around a ViT, some layers of which it reads itself."""

    vit: nn.Module
    reads: Sequence[LayerRequest]


@runtime_checkable
class LayeredBackbone(Protocol):
    """A ViT whose parameters have a depth: 0 is the embedding, `depth` + 1 the final norm."""

    def layer_of(self, parameter_name: str) -> int: ...


@runtime_checkable
class FreezableBackbone(Protocol):
    """A ViT that can be frozen from the embedding up to a layer, as `LayeredBackbone` counts them."""

    depth: int

    def freeze_below(self, layer: int) -> None: ...


@runtime_checkable
class ShardableBackbone(Protocol):
    """A ViT that names the modules which sharded training gathers one at a time, in the order in which they run."""

    def sharding_units(self) -> Sequence[nn.Module]: ...


@runtime_checkable
class SizedBackbone(Protocol):
    """A ViT whose pretrained file decided `patch_size` or `img_size`."""

    decided: dict[str, Any]


class Adapter(Protocol):
    """A reader of ViT layers, which gives `Features` with `maps`."""

    layers: Sequence[LayerRequest]  # what it reads
    out_channels: Sequence[int]
    strides: Sequence[float]

    def forward(self, features: Features, imgs: Tensor) -> Features: ...


class FeatureHead(Protocol):
    """A reader of `Features`, built with the `in_channels` and `strides` of the adapter's maps."""

    def forward(self, features: Features) -> Outputs: ...


@runtime_checkable
class ClassifyingHead(Protocol):
    """A head whose number of classes is compared with that of the data."""

    num_classes: int


@runtime_checkable
class PretrainedHead(Protocol):
    """A head that can take over the classifier of the backbone's checkpoint."""

    pretrained: bool  # it is to take it over

    def load_classifier(self, classifier: Classifier) -> None: ...


@runtime_checkable
class ClassRows(Protocol):
    """A module with layers that have a row for each class."""

    class_layers: Sequence[ClassLayer]


@runtime_checkable
class PartlyPretrained(Protocol):
    """A module some weights of which its pretrained file holds; checkpoints omit them."""

    omitted_weights: Sequence[str]


@runtime_checkable
class Recomputing(Protocol):
    """A module that can recompute its activations in the backward pass."""

    checkpointing: bool


@runtime_checkable
class MaskedAttentionNetwork(Protocol):
    """A network with masked attention, on a share of the queries in each block."""

    def set_masking(self, shares: Sequence[float]) -> None: ...


@runtime_checkable
class EncoderNetwork(Protocol):
    """A pretraining network, whose encoder is the result."""

    def encoder_weights(self, state: Any) -> dict[str, Tensor]: ...


@runtime_checkable
class QueryPart(Protocol):
    """A head or network with a fixed number of object queries."""

    num_queries: int


class Network(Protocol):
    """A model of pixels only, without targets."""

    names: Sequence[str]  # of its outputs
    divisor: int
    mean: Sequence[float]
    std: Sequence[float]

    def forward(self, imgs: Tensor, valid: Tensor | None = None, training_inputs: Any = None) -> dict[str, Outputs]: ...


@runtime_checkable
class BackboneNetwork(Protocol):
    """A network with a part that all outputs share."""

    backbone: nn.Module


@runtime_checkable
class BranchedNetwork(Protocol):
    """A network whose branches can run alone: it takes `names=`, the branches to run."""

    trainable_branches: Sequence[str]


@runtime_checkable
class HeadsNetwork(Protocol):
    """A network made of adapters and heads by name."""

    adapters: nn.ModuleDict
    heads: nn.ModuleDict


class Task(Protocol):
    """Losses and predictions of one output; it has no weights."""

    field: str | None  # of `Target`, that it reads; None: it reads images only
    datasets: Sequence[str] | None  # names of the data sets it trains on; None: all

    def loss(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]: ...

    def predict(self, outputs: Any, metas: Sequence[Meta]) -> list[Any]: ...


@runtime_checkable
class TopKTask(Protocol):
    """A task that reads a limited number of predictions from an image."""

    top_k: int


@runtime_checkable
class TrainingInputsTask(Protocol):
    """A task that makes inputs of its head in training, such as denoising queries."""

    def training_inputs(self, targets: Sequence[Target], sizes: Tensor) -> Any: ...


@runtime_checkable
class BlendableTask(Protocol):
    """A task whose queries stand for labels of pixels: scores of windows and views can be averaged, queries cannot.

    `form` is 'scores'; 'pixels', their logarithms; or 'factors', whose product they are.
    """

    def blendable(self, outputs: QueryOutputs, form: str) -> PixelOutputs | MaskScores: ...


@runtime_checkable
class GraphTask(Protocol):
    """A task whose predictions are tensors, which an exported graph can give."""

    def graph_predictions(self, outputs: Any, extent: tuple[int, int], size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the predictions of a batch: 'boxes' (B, N, 4) xyxy, 'scores' and 'labels' (B, N); or 'map' (B, H, W);
        or 'scores' (B, K).

        The input of the network covers `extent` (H, W) pixels, of which the upper left `size` is image.
        """
        ...


@runtime_checkable
class ScoreMatcher(Protocol):
    """A matcher that reads logits as scores of the form 'sigmoid' or 'softmax'."""

    form: str


class Metric(Protocol):
    """Scores of predictions, such as mmengine's `BaseMetric`, logged as `prefix/name`."""

    prefix: str

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None: ...

    def evaluate(self, size: int) -> dict[str, float]: ...


@runtime_checkable
class Tabulated(Protocol):
    """A metric with a table of its last evaluation, one record for each row."""

    def table(self) -> Sequence[NamedTuple]: ...


@runtime_checkable
class ScoreNames(Protocol):
    """A metric with score names known before evaluation."""

    names: Sequence[str]


@runtime_checkable
class LimitedMetric(Protocol):
    """A metric that counts a limited number of predictions for each image and class."""

    max_detections: int


@runtime_checkable
class HeadMetric(Protocol):
    """A metric of one head."""

    head: str


@runtime_checkable
class OperatingPointMetric(Protocol):
    """A metric of one head that finds score thresholds for its classes (`metrics.operating_points`)."""

    head: str

    def operating_points(self) -> dict[str, Any]: ...


@runtime_checkable
class WithConfusion(Protocol):
    """A metric with a confusion matrix of its last evaluation."""

    def save_confusion(self, folder: str | Path, *, stem: str = ...) -> None: ...
