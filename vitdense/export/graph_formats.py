"""From an ONNX graph to the files of the other formats and precisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitdense.export.runtimes import GRAPHS, missing

MIN_VALUES = 256  # of a weight that is stored in float16: smaller ones are scales, biases and constants


def finish(folder: Path, *, runtime: str, half: bool) -> None:
    """Turn the float32 `model.onnx` of `folder` into the graph of `runtime`, with weights in float16 for `half`.

    Raises ResourceError where OpenVINO is not installed.
    """
    path = folder / GRAPHS['onnx'][0]
    if runtime == 'openvino':
        _to_openvino(path, half=half)
    elif half:
        _halve_weights(path)


def _to_openvino(path: Path, *, half: bool) -> None:
    """Write the OpenVINO files beside an ONNX file and remove it."""
    try:
        import openvino
    except ImportError as error:
        raise missing('openvino', error, '--format openvino') from error
    model = openvino.Core().read_model(path)  # not `convert_model`, which reports its use over the network
    openvino.save_model(model, path.with_suffix('.xml'), compress_to_fp16=half)
    path.unlink()


def _halve_weights(path: Path) -> None:
    """Store the large weights of an ONNX file in float16; casts at its start, which runtimes fold, give float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(path))
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and values.size >= MIN_VALUES:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f'{name}_float16'))
            casts.append(helper.make_node('Cast', [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
