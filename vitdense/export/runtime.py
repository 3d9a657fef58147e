"""An exported graph in place of a model's network, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.errors import ExportError, ResourceError
from vitdense.export.graph import INPUT, INSTALL, RECORDS, Slot
from vitdense.types import Outputs


class OnnxNetwork(nn.Module):
    """A network `(imgs, valid) -> {head: Outputs}` without weights of its own: an ONNX file and a runtime.

    `info` is the content of `export.json`. Raises ResourceError without onnxruntime, ExportError for a file that it
    cannot load.
    """

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ResourceError('onnxruntime is not installed', where=str(path), why=str(error), fix=INSTALL) from error
        self.names = tuple(info['heads'])
        self.divisor, self.mean, self.std = info['divisor'], tuple(info['mean']), tuple(info['std'])
        self.size = None if 'size' in info['dynamic'] else tuple(info['size'])
        self.slots = [Slot(*slot) for slot in info['outputs']]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        wanted = ('CUDAExecutionProvider', 'CPUExecutionProvider')
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the runtime's own classes of errors
            raise ExportError(
                'onnxruntime cannot load the graph', where=str(path), why=str(error)[:300], fix='export the model again'
            ) from error

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
        arrays = self.session.run([slot.name for slot in self.slots], {INPUT: imgs.float().cpu().numpy()})
        size, outputs = (int(imgs.shape[-2]), int(imgs.shape[-1])), {}
        for head in self.names:
            pairs = zip(self.slots, arrays, strict=True)
            fields = {slot.field: torch.from_numpy(array).to(imgs.device) for slot, array in pairs if slot.head == head}
            record = RECORDS[next(slot.record for slot in self.slots if slot.head == head)]
            sized = {'input_size': size} if 'input_size' in record._fields else {}
            outputs[head] = record(**fields, **sized)
        return outputs
