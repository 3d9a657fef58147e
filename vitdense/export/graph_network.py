"""An exported graph in place of a model's network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitdense.errors import ExportError
from vitdense.export.graph import PREDICTIONS, RECORDS, Slot
from vitdense.export.inside import GraphPredictions
from vitdense.export.runtimes import open_graph
from vitdense.types import Outputs


class GraphNetwork(nn.Module):
    """A network `(imgs, valid) -> {head: Outputs}` without weights of its own: the graph in `folder` and its runtime.

    `info` is the content of `export.json`. Raises ResourceError without the runtime, ExportError for a file that it
    cannot load, or may not unless it is `trusted`.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any], *, trusted: bool = False) -> None:
        super().__init__()
        self.names = tuple(info['heads'])
        self.divisor, self.mean, self.std = info['divisor'], tuple(info['mean']), tuple(info['std'])
        self.preprocesses = 'preprocessing' in info['inside']
        self.padded_to = 1 if info['resizes'] else self.divisor  # what the outputs cover
        if self.preprocesses:  # `imgs` are gray levels, 0 to 255, and not padded
            self.divisor, self.mean, self.std = 1, (0.0,) * 3, (1 / 255,) * 3
        self.size = None if 'size' in info['dynamic'] else tuple(info['size'])
        self.one_by_one = 'batch' not in info['dynamic']
        self.slots = [Slot(*slot) for slot in info['outputs']]
        self.run = open_graph(folder, info, trusted=trusted)

    def forward(self, imgs: Tensor, valid: Tensor | None = None) -> dict[str, Outputs]:
        """Map `imgs` (B, 3, H, W), float32 normalised, to the outputs of all heads, on the device of `imgs`.

        Raises ExportError for images of another size than a graph of one size has, and for a batch in which images
        are padded: the graph has no padding.
        """
        if valid is not None:
            raise ExportError(
                'the graph takes no padded images',
                where=f'a batch of images that are padded to {tuple(imgs.shape[-2:])}',
                why='images of different sizes are in one batch, or a transform pads them',
                fix='run images one by one, or with transforms that give all of them one size',
            )
        if self.size is not None and tuple(imgs.shape[-2:]) != self.size:
            raise ExportError(
                f'the graph is for images of {self.size[0]} x {self.size[1]}',
                where=f'an image of {imgs.shape[-2]} x {imgs.shape[-1]} after the transforms',
                why='it was exported for one size',
                fix='export with --dynamic batch,size, or with transforms that give this size',
            )
        height, width = (-(-int(side) // self.padded_to) * self.padded_to for side in imgs.shape[-2:])
        return self._records(self._tensors(imgs), (height, width))

    def as_input(self, imgs: Tensor) -> np.ndarray:
        """Return a batch as the graph takes it."""
        return (imgs.round().to(torch.uint8) if self.preprocesses else imgs.float()).cpu().numpy()

    def _tensors(self, imgs: Tensor) -> dict[Slot, Tensor]:
        """Return the outputs of the graph, which may take one image at a time."""
        parts = imgs.split(1 if self.one_by_one else len(imgs))
        arrays = zip(*(self.run(self.as_input(part)) for part in parts), strict=True)  # by output, then by part
        tensors = [torch.cat([torch.from_numpy(array) for array in each]).to(imgs.device) for each in arrays]
        return dict(zip(self.slots, tensors, strict=True))

    def _records(self, tensors: Mapping[Slot, Tensor], size: tuple[int, int]) -> dict[str, Outputs]:
        outputs = {}
        for head in self.names:
            fields = {slot.field: tensor for slot, tensor in tensors.items() if slot.head == head}
            name = next(slot.record for slot in self.slots if slot.head == head)
            if name == PREDICTIONS:
                outputs[head] = GraphPredictions(fields)
                continue
            if 'sizes' in fields:  # of the images, which the graph may have resized
                fields['sizes'] = fields['sizes'].new_tensor(size).expand(len(fields['sizes']), 2)
            record = RECORDS[name]
            sized = {'input_size': size} if 'input_size' in record._fields else {}
            outputs[head] = record(**fields, **sized)
        return outputs
