"""The network of a model as one graph: all heads of one backbone pass, in ONNX with plain operators, or of torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitdense.errors import ExportError, cause_of
from vitdense.export.inside import Preprocessing
from vitdense.protocols import GraphTask
from vitdense.types import ClassOutputs, MaskScores, Outputs, PixelOutputs, QueryOutputs, ReconstructionOutputs

OPSET = 20  # the first in which GridSample and its alignment are those of torch for 4 dimensions
INPUT = 'images'
PREDICTIONS = 'predictions'  # in place of the name of a record
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
    """A network that returns the tensors of its heads in one flat tuple: their outputs, or with `tasks` predictions.

    With `before` it takes images as files have them, (B, 3, H, W) uint8, and boxes and maps are in their pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        heads: Sequence[str],
        *,
        before: Preprocessing | None = None,
        tasks: Mapping[str, GraphTask] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.heads, self.before, self.tasks = network, tuple(heads), before, tasks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map `images`, float32 normalised unless there is a preprocessing, to the tensors of all heads."""
        return tuple(self.tensors(images).values())

    def tensors(self, images: Tensor) -> dict[Slot, Tensor]:
        """Return the tensors by output."""
        size = (images.shape[-2], images.shape[-1])
        imgs = images if self.before is None else self.before(images)
        outputs = self.network(imgs)
        if self.tasks is None:
            return {slot: getattr(outputs[slot.head], slot.field) for slot in slots_of(outputs, self.heads)}
        resized = self.before is not None and self.before.resize is not None
        extent = size if resized else (imgs.shape[-2], imgs.shape[-1])
        predictions = {head: task.graph_predictions(outputs[head], extent, size) for head, task in self.tasks.items()}
        return {
            Slot(head, PREDICTIONS, name): value for head in self.heads for name, value in predictions[head].items()
        }


def slots_of(outputs: dict[str, Outputs], heads: Sequence[str]) -> list[Slot]:
    """Return the tensor fields of the outputs of `heads`; what only training needs is left out."""
    slots = []
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
        slots += [Slot(head, type(record).__name__, field) for field, value in fields if isinstance(value, Tensor)]
    return slots


def export_onnx(graph: HeadsGraph, path: Path, *, size: tuple[int, int], dynamic: Collection[str] = ()) -> list[Slot]:
    """Write a graph to `path` and return its outputs.

    `size` (H, W) is that of its images; `dynamic` names what may differ from call to call: 'batch', 'size'. Raises
    ExportError when torch cannot trace the network like that.
    """
    images, shapes, slots = _example(graph, size, dynamic)
    with _tracing(size, dynamic):
        torch.onnx.export(
            graph,
            (images,),
            path,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[slot.name for slot in slots],
            verbose=False,
            external_data=False,
        )
    return slots


def export_program(
    graph: HeadsGraph, path: Path, *, size: tuple[int, int], dynamic: Collection[str] = ()
) -> list[Slot]:
    """Write a graph to `path` as a program of torch.export (PT2 archive) and return its outputs; see `export_onnx`."""
    images, shapes, slots = _example(graph, size, dynamic)
    with _tracing(size, dynamic):
        torch.export.save(torch.export.export(graph, (images,), dynamic_shapes=shapes), path)
    return slots


def _example(
    graph: HeadsGraph, size: tuple[int, int], dynamic: Collection[str]
) -> tuple[Tensor, tuple[dict] | None, list[Slot]]:
    """Return images to trace a graph with, which of their dimensions are free, and the outputs of the graph."""
    graph.eval()
    images = torch.randn(2, 3, *size) if graph.before is None else torch.full((2, 3, *size), 127, dtype=torch.uint8)
    free = torch.export.Dim.AUTO
    dims = ({0: free} if 'batch' in dynamic else {}) | ({2: free, 3: free} if 'size' in dynamic else {})
    if 'batch' not in dynamic:
        images = images[:1]
    with torch.inference_mode():
        slots = list(graph.tensors(images))
    return images, (dims,) if dims else None, slots


@contextlib.contextmanager
def _tracing(size: tuple[int, int], dynamic: Collection[str]) -> Iterator[None]:
    """Trace without gradients and remarks; errors of the exporter, which are of many kinds, become ExportError."""
    try:
        with torch.no_grad(), _quiet():
            yield
    except Exception as error:
        raise ExportError(
            'torch cannot export the network',
            where=f'images of {size[0]} x {size[1]}, free: {", ".join(dynamic) or "nothing"}',
            why=cause_of(_first(error)),
            fix='export for one size: --dynamic batch, or --dynamic none; another size: --size H W',
        ) from error


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


def _first(error: BaseException) -> BaseException:
    """Return the first error in the chain of an exporter's error, which is the most specific one."""
    return error if error.__cause__ is None else _first(error.__cause__)
