"""The network of a model as one ONNX graph: all heads of one backbone pass, with plain ONNX operators only."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitdense.errors import ExportError, ResourceError
from vitdense.types import ClassOutputs, MaskScores, Outputs, PixelOutputs, QueryOutputs, ReconstructionOutputs

OPSET = 20  # the first in which GridSample and its alignment are those of torch for 4 dimensions
INPUT = 'images'
RECORDS = {record.__name__: record for record in (ClassOutputs, PixelOutputs, QueryOutputs, MaskScores)}


class Slot(NamedTuple):
    """An output of the graph: a tensor field of the outputs of a head."""

    head: str
    record: str  # the name of the record in `vitdense.types`
    field: str

    @property
    def name(self) -> str:
        return f'{self.head}.{self.field}'


class HeadsGraph(nn.Module):
    """A network that returns the tensors of its heads' outputs in one flat tuple, in the order of `slots`."""

    def __init__(self, network: nn.Module, heads: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.heads = tuple(heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map `images` (B, 3, H, W), float32 normalised, to the tensors of all heads."""
        outputs = self.network(images)
        return tuple(getattr(outputs[slot.head], slot.field) for slot in slots_of(outputs, self.heads))


def slots_of(outputs: dict[str, Outputs], heads: Sequence[str]) -> list[Slot]:
    """Return the tensor fields of the outputs of `heads`; what only training needs is left out."""
    found = []
    for head in heads:
        record = outputs[head]
        if type(record).__name__ not in RECORDS:
            raise ExportError(
                f"outputs of '{head}' cannot be exported",
                where=f'--heads {head}',
                why=f'{type(record).__name__} has no form as a graph'
                + ('; it is for pretraining' if isinstance(record, ReconstructionOutputs) else ''),
                fix='export the other heads: --heads NAME,NAME',
            )
        fields = zip(record._fields, record, strict=True)
        found += [Slot(head, type(record).__name__, field) for field, value in fields if isinstance(value, Tensor)]
    return found


def export_onnx(
    network: nn.Module, path: Path, *, heads: Sequence[str], size: tuple[int, int], dynamic: Collection[str] = ()
) -> list[Slot]:
    """Write the graph of a network to `path` and return its outputs.

    `size` (H, W) is that of its images; `dynamic` names what may differ from call to call: 'batch', 'size'. Raises
    ExportError when torch cannot trace the network like that, ResourceError where the exporter is not installed.
    """
    _check_exporter()
    graph = HeadsGraph(network, heads).eval()
    images = torch.randn(2, 3, *size)
    free = torch.export.Dim.AUTO
    dims = ({0: free} if 'batch' in dynamic else {}) | ({2: free, 3: free} if 'size' in dynamic else {})
    if 'batch' not in dynamic:
        images = images[:1]
    with torch.inference_mode():
        slots = slots_of(network(images), heads)
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                graph,
                (images,),
                path,
                dynamo=True,
                dynamic_shapes=(dims,) if dims else None,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[slot.name for slot in slots],
                verbose=False,
                external_data=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        raise ExportError(
            'torch cannot export the network',
            where=f'images of {size[0]} x {size[1]}, free: {", ".join(dynamic) or "nothing"}',
            why=_reason(error),
            fix='export for one size: --dynamic batch, or --dynamic none; another size: --size H W',
        ) from error
    return slots


def _check_exporter() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            'the ONNX exporter is not installed', where='tools/export.py', why=str(error), fix=INSTALL
        ) from error


INSTALL = "pip install 'vitdense[export]'"


@contextlib.contextmanager
def _quiet():
    """Keep the exporter's remarks out of the console."""
    names = ('torch.onnx', 'onnxscript', 'onnx_ir', 'torch.export')
    loggers = [logging.getLogger(name) for name in names]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _reason(error: Exception) -> str:
    """Return the line of an exporter's error that says most."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {(lines or [""])[0][:200]}'
