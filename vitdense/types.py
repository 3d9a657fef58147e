"""The records that parts exchange.

Records are `NamedTuple`s, so DataLoader workers, pinned memory, torchvision v2 transforms and mmengine's `cast_data`
carry them as they are. Shapes are written here, once. Three rules hold everywhere:

* `len(target)` counts *fields*, and `target[keep]` does not filter objects: index the fields.
* A record is immutable; `record._replace(field=value)` is the one spelling of change.
* Sizes are `(H, W)`, images are RGB, `boxes` are xyxy in absolute pixels of the image at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

IGNORE = 255  # the label of unlabelled pixels; it never enters a loss or a metric


OBJECT_FIELDS = ('boxes', 'labels', 'masks', 'iscrowd', 'area', 'annotation_ids')  # of `Target`, a row for each object


class Target(NamedTuple):
    """The labels of one image. A field is None where it was not labelled; empty: labelled, and without objects."""

    boxes: Tensor | None = None  # (N, 4) float32 xyxy, pixels (float64 in evaluation, where a file is not rounded)
    labels: Tensor | None = None  # (N,) int64 in [0, num_classes)
    masks: Tensor | None = None  # (N, H, W) bool, one per object
    semantic: Tensor | None = None  # (H, W) uint8 in [0, num_classes) or IGNORE
    image_label: Tensor | None = None  # () int64, or (K,) float32 soft or multi-label
    iscrowd: Tensor | None = None  # (N,) bool
    area: Tensor | None = None  # (N,) float32 (float64 like boxes), square pixels, as the annotation file says
    annotation_ids: Tensor | None = None  # (N,) int64, as in the annotation file

    def value_of(self, field: str) -> Any:
        """Return the value of the field that a task or a metric reads."""
        return self[self._fields.index(field)]


class Meta(NamedTuple):
    """Origin and sizes of an image."""

    image_id: int | str
    path: str = ''
    dataset: str = ''  # name of the data set; tasks choose their rows by it
    orig_size: tuple[int, int] = (0, 0)  # (H, W) on disk, upright
    size: tuple[int, int] = (0, 0)  # (H, W) after transforms and before the padding of the batch
    image_size: tuple[int, int] | None = None  # (H, W) of the image at the upper left of what a transform has padded
    zero_padding: bool = False  # what that transform added is zero after normalisation, not a gray level before it

    @property
    def unpadded_size(self) -> tuple[int, int]:
        """(H, W) of the image alone after transforms: what predictions are cut to before they are resized."""
        return self.size if self.image_size is None else self.image_size


class Sample(NamedTuple):
    """One image with its target, as a data set gives it."""

    img: Tensor  # (3, H, W) uint8 RGB
    target: Target
    meta: Meta


class Batch(NamedTuple):
    """B images padded at the right and the bottom to one size."""

    imgs: Tensor  # (B, 3, H, W): uint8 RGB from `collate`, float32 normalised after `Preprocessor`
    targets: Sequence[Target]  # B records, not padded
    metas: Sequence[Meta]  # B records
    valid: Tensor | None = None  # (B, H, W) bool, False = padding; None: no whole cell of the network's grid is padding


class LayerRequest(NamedTuple):
    """A request for tokens of a ViT: those that leave block `index`, with or without the final norm."""

    index: int  # block number from 0; negative counts from the end (-1: the last block)
    normed: bool = True


class Features(NamedTuple):
    """Feature maps of a batch. A backbone fills `layers` and `cls`; an adapter fills `maps`."""

    maps: tuple[Tensor, ...] = ()  # pyramid, fine to coarse; maps[i] is (B, C_i, h_i, w_i) at strides[i] of the adapter
    layers: tuple[Tensor, ...] = ()  # (B, C, h, w) at patch stride, one per requested (layer, normed) pair
    cls: tuple[Tensor, ...] = ()  # (B, C) class token of the same pairs; empty for a ViT without class token
    valid: Tensor | None = None  # (B, H, W) bool in input pixels, as in Batch
    input_size: tuple[int, int] = (0, 0)  # (H, W) of the padded network input, which the maps cover


class Classifier(NamedTuple):
    """The classifier in a backbone's checkpoint, and the pooling of the last block's tokens that it needs."""

    pool: str  # 'token', 'average' or 'attention', as `ClassHead` names them
    normed: bool  # the final norm stands before the pooling
    weights: Mapping[str, Tensor]  # under the names of `ClassHead`; 'norm.*': a layer norm stands behind the pooling
    where: str  # the file or the hub they come from


class ClassLayer(NamedTuple):
    """A layer with a row for each class: row i of its parameters, along dimension 0, is that of class i.

    Heads and networks name theirs in an attribute `class_layers`, so that weights can be taken over to other classes.
    """

    name: str  # inside the module that names it
    num_extra: int = 0  # rows behind those of the classes: no object, filler of denoising


class ClassOutputs(NamedTuple):
    """Class logits of whole images."""

    logits: Tensor  # (B, num_classes)


class PixelOutputs(NamedTuple):
    """Logits for every pixel, on a grid of any resolution that covers the padded input edge to edge."""

    logits: Tensor  # (B, num_classes, h, w)
    input_size: tuple[int, int]  # (H, W) of the padded input that the grid covers
    aux: tuple[Tensor, ...] = ()  # logits of auxiliary heads, each (B, num_classes, h_i, w_i); training only


class DenoisingQueries(NamedTuple):
    """Noised objects that a detector must restore, as D extra queries of each image; training only.

    The queries of an image are `groups` times the same number of rows. Queries attend within their own group only.
    """

    labels: Tensor  # (B, D) int64 noised class in [0, num_classes)
    boxes: Tensor  # (B, D, 4) cxcywh in [0, 1] of each image, noised
    objects: Tensor  # (B, D) int64 row of the object in the image's target; -1: the query is filler
    positive: Tensor  # (B, D) bool, True: the target is the object; False: no object
    groups: int = 1


class QueryOutputs(NamedTuple):
    """Outputs for Q object queries."""

    class_logits: Tensor  # (B, Q, num_classes); heads that are trained with softmax add a last column: no object
    boxes: Tensor | None = None  # (B, Q, 4) cxcywh in [0, 1] of each image, whose size is in `sizes`
    sizes: Tensor | None = None  # (B, 2) float32 (height, width) in input pixels of the region that `boxes` measure
    mask_logits: Tensor | None = None  # (B, Q, h, w)
    aux: tuple[QueryOutputs, ...] = ()  # outputs of earlier decoder layers, same shapes
    proposals: QueryOutputs | None = None  # the first stage of a two-stage detector
    denoising: QueryOutputs | None = None  # outputs of `denoising_queries`, with their own `aux`; training only
    denoising_queries: DenoisingQueries | None = None  # the input of `denoising`
    groups: int = 1  # Q is made of this many independent groups (training only)
    input_size: tuple[int, int] = (0, 0)  # (H, W) of the padded input that `mask_logits` cover


class MaskScores(NamedTuple):
    """Scores of classes at pixels, not multiplied out: the sum over Q queries of `probs` times the sigmoid of
    `mask_logits`, which are resized to `input_size` first.
    """

    probs: Tensor  # (B, Q, num_classes) float32
    mask_logits: Tensor  # (B, Q, h, w)
    input_size: tuple[int, int]  # (H, W) of the padded input that `mask_logits` cover


class ReconstructionOutputs(NamedTuple):
    """Reconstructed patches of p x p pixels of a masked autoencoder; the values of a patch are its rows, columns, RGB.

    Values times `scale` plus `shift`, for each colour, are pixels in [0, 1].
    """

    patches: Tensor  # (B, L, p * p * 3) predicted pixels, normalised as the target is
    target: Tensor  # (B, L, p * p * 3)
    mask: Tensor  # (B, L) bool, True where the patch was not an input of the encoder
    scale: Tensor  # (B, L, 3)
    shift: Tensor  # (B, L, 3)
    grid: tuple[int, int]  # (h, w), L = h * w patches, row by row


class LabelOutputs(NamedTuple):
    """Label maps computed window by window, for images whose logits would not fit into memory."""

    labels: tuple[Tensor, ...]  # B maps (H, W) uint8 (int16 above 255 classes), each in its image's original size


class ObjectOutputs(NamedTuple):
    """Predicted objects of a window or view, before they are merged with those of the other windows or views."""

    objects: tuple[Instances, ...]  # B records; boxes, and masks where there are some, in pixels of the padded input


class ImageClass(NamedTuple):
    """Predicted label of one image."""

    scores: Tensor  # (num_classes,) float32


class SemanticMap(NamedTuple):
    """Predicted label of every pixel of one image."""

    labels: Tensor  # (H, W) uint8 (int16 above 255 classes), in the image's original size


class Instances(NamedTuple):
    """Predicted objects of one image, best first."""

    boxes: Tensor  # (N, 4) float32 xyxy in pixels of the original image
    scores: Tensor  # (N,) float32 in [0, 1]
    labels: Tensor  # (N,) int64
    masks: Tensor | None = None  # (N, H, W) bool; packed in a `Result`
    track_ids: Tensor | None = None  # (N,) int64 of objects that are followed through a video; -1: none

    def select(self, rows: Any) -> Instances:
        """Return some of the objects: `rows` is a slice, or row numbers or a mask as a tensor or an array."""
        return Instances(*(None if column is None else column[rows] for column in self))


class Reconstruction(NamedTuple):
    """One image as a masked autoencoder reconstructed it, in its original size."""

    image: Tensor  # (3, H, W) uint8 RGB: visible patches of the input, masked ones as predicted
    mask: Tensor  # (H, W) bool, True on masked patches
    error: Tensor  # () float32 mean squared error of the masked patches, normalised as in training


Outputs = ClassOutputs | PixelOutputs | QueryOutputs | MaskScores | ReconstructionOutputs | LabelOutputs | ObjectOutputs
Prediction = ImageClass | SemanticMap | Instances | Reconstruction
