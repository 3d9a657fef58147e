"""Images that are predicted in windows: only the current window is read, normalised and moved to the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitdense.data.files.tiled_tiff import TiledTiff
from vitdense.ops.packed_masks import PackedMasks
from vitdense.types import Instances, Prediction, SemanticMap

IN_WINDOWS = 40_000_000  # pixels from which a file is read window by window
PREVIEW = 4096  # pixels of the longest side of the copy of such an image


class WindowedImage:
    """An image as a batch of one, (1, 3, H, W) float32, of which windows are taken: `images[..., rows, columns]`.

    `normalise` brings (1, 3, h, w) uint8 to the device. Sides are padded with zeros to multiples of `divisor`.
    """

    def __init__(self, image: Tensor | TiledTiff, normalise: Callable[[Tensor], Tensor], *, divisor: int) -> None:
        self.image, self._normalise = image, normalise
        self.size = tuple(image.shape[-2:])
        self.shape = torch.Size((1, 3, *(-(-side // divisor) * divisor for side in self.size)))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: tuple[Any, slice, slice]) -> Tensor:
        top, left = (part.start for part in index[1:])
        height, width = (part.stop - part.start for part in index[1:])
        inside = min(height, self.size[0] - top), min(width, self.size[1] - left)
        if isinstance(self.image, TiledTiff):
            window = self.image.read(top, left, *inside)
        else:
            window = self.image[:, top : top + inside[0], left : left + inside[1]]
        return functional.pad(self._normalise(window[None]), (0, width - inside[1], 0, height - inside[0]))


def preview_step(size: tuple[int, int]) -> int:
    """Return of how many rows and columns the copy of a large image keeps one."""
    return -(-max(size) // PREVIEW)


def at_preview(predictions: Mapping[str, Prediction], step: int) -> dict[str, Prediction]:
    """Return the predictions of an image as those of its copy, which has every `step`-th row and column."""
    small: dict[str, Prediction] = {}
    for head, prediction in predictions.items():
        if isinstance(prediction, SemanticMap):
            prediction = SemanticMap(prediction.labels[::step, ::step])
        elif isinstance(prediction, Instances):
            masks = prediction.masks if prediction.masks is None else PackedMasks.of(prediction.masks).every(step)
            prediction = prediction._replace(
                boxes=prediction.boxes / step, masks=masks if masks is None else torch.from_numpy(np.asarray(masks))
            )
        small[head] = prediction
    return small
