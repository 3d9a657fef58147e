"""Programs that run the graph of an exported folder: onnxruntime, OpenVINO and torch."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitdense.errors import ExportError, ResourceError

Run = Callable[[np.ndarray], Sequence[np.ndarray]]  # images -> the outputs in the order of the graph
GRAPHS = {  # files of each format
    'onnx': ('model.onnx',),
    'openvino': ('model.xml', 'model.bin'),
    'torch-export': ('model.pt2',),
}


def missing(module: str, error: ImportError, where: str) -> ResourceError:
    """Return the error of a package that is not installed."""
    extra = 'openvino' if module in ('openvino', 'nncf') else 'export'
    return ResourceError(
        f'{module} is not installed', where=where, why=str(error), fix=f"pip install 'vitdense[{extra}]'"
    )


def check_installed(runtime: str, *, int8: bool = False) -> None:
    """Raise ResourceError where a package is missing that exports to `runtime`, or runs it."""
    modules = {'onnx': ['onnx', 'onnxscript', 'onnxruntime'], 'openvino': ['onnx', 'onnxscript', 'openvino']}
    for module in [*modules.get(runtime, []), *(['nncf'] if int8 else [])]:
        if importlib.util.find_spec(module) is None:
            raise missing(module, ImportError(f"No module named '{module}'"), 'tools/export.py')


def open_graph(folder: Path, info: Mapping[str, Any], *, trusted: bool = False) -> Run:
    """Return what runs the graph of `folder`, whose `export.json` is `info`, with torch's number of threads.

    Raises ResourceError where the runtime is not installed, ExportError for a file that it cannot load, and for a
    program of torch.export unless it is `trusted`: reading one evaluates expressions and pickles that it holds.
    """
    if info['runtime'] == 'torch-export' and not trusted:
        raise ExportError(
            'the graph runs code when it is read',
            where=str(folder),
            why='torch.export.load evaluates expressions of the file, and vitdense runs no code of files by itself',
            fix='for a file of your own: vitdense.load(folder, trust=True), or --trust-checkpoint',
        )
    opened = {'onnx': _onnxruntime, 'openvino': _openvino, 'torch-export': _torch}[info['runtime']]
    path = folder / GRAPHS[info['runtime']][0]
    try:
        return opened(path, [f'{head}.{field}' for head, _, field in info['outputs']], info['precision'])
    except ImportError as error:
        raise missing({'onnx': 'onnxruntime'}.get(info['runtime'], 'openvino'), error, str(folder)) from error
    except Exception as error:  # the runtimes' own classes of errors
        raise ExportError(
            'the graph cannot be loaded', where=str(path), why=str(error)[:300], fix='export the model again'
        ) from error


def _onnxruntime(path: Path, names: Sequence[str], precision: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ('CUDAExecutionProvider', 'CPUExecutionProvider')
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    name = session.get_inputs()[0].name
    return lambda images: session.run(list(names), {name: images})


def _openvino(path: Path, names: Sequence[str], precision: str) -> Run:
    import openvino

    core = openvino.Core()
    local = _Request(core.compile_model(core.read_model(path), 'CPU', openvino_config(precision)))

    def run(images: np.ndarray) -> list[np.ndarray]:
        local.request.infer({0: images})
        return [local.request.get_tensor(name).data.copy() for name in names]

    return run


def _torch(path: Path, names: Sequence[str], precision: str) -> Run:
    """Return what runs a program of torch.export, on the CPU."""
    program = torch.export.load(path).module()

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode(), torch.autocast('cpu', enabled=False):
            return [output.numpy() for output in program(torch.from_numpy(images))]

    return run


def openvino_config(precision: str = 'float32') -> dict[str, Any]:
    """Return how OpenVINO runs a graph: soon, with torch's number of threads, and in bfloat16 only where it is chosen.

    By default it would take bfloat16 wherever the processor has it, whose 8 bits of precision move boxes.
    """
    hint = 'bf16' if precision == 'bfloat16' else 'f32'
    options = {'INFERENCE_NUM_THREADS': torch.get_num_threads(), 'PERFORMANCE_HINT': 'LATENCY'}
    return {**options, 'INFERENCE_PRECISION_HINT': hint}


class _Request(threading.local):
    """A request of a compiled OpenVINO model for each thread: it holds the arrays of one call."""

    def __init__(self, compiled: Any) -> None:
        self.request = compiled.create_infer_request()
