"""Folders of exported models: the graph, `export.json` and the `model.json` of the model, without its weights.

The graph is `model.onnx`, for OpenVINO `model.xml` and `model.bin`, or a program of torch.export, `model.pt2`.
"""

from __future__ import annotations

import keyword
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torchvision import tv_tensors

import vitdense
from vitdense.checkpoints.descriptions import check_recipes, read_description
from vitdense.checkpoints.model_folder import CONTENT, model_folder_of, read_model_folder
from vitdense.data.transforms.common import Pipeline
from vitdense.errors import ExportError
from vitdense.export.graph import OPSET, HeadsGraph, export_onnx, export_program
from vitdense.export.graph_formats import finish
from vitdense.export.graph_network import GraphNetwork
from vitdense.export.inside import PredictionReader, check_tasks, preprocessing_of
from vitdense.export.quantization import quantize
from vitdense.export.runtimes import GRAPHS, check_installed
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.storage.atomic import make_folder, read_json, sha256_of, write_json
from vitdense.storage.trust import are_checkpoints_trusted
from vitdense.types import Batch, Meta, Sample, Target

if TYPE_CHECKING:
    from vitdense.export.verify import Side, Verdict

logger = logging.getLogger('vitdense')
INFO, MODEL = 'export.json', 'model.json'
FORMAT = 2
AGAIN = 'export it again'
Runtime = Literal['onnx', 'openvino', 'torch-export']
Precision = Literal['float32', 'float16', 'bfloat16']
LEVELS = {'float32': 'exact', 'float16': 'close', 'bfloat16': 'coarse', 'int8': 'coarse'}  # of the verdict
SHAPES = ((480, 640), (640, 480))  # of images that show whether transforms give all images one size


def export_model(
    source: str | Path,
    out: Path,
    *,
    heads: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    dynamic: Collection[str] | None = None,
    runtime: Runtime = 'onnx',
    precision: Precision = 'float32',
    inside: Collection[str] = (),
) -> dict[str, Any]:
    """Export the model folder `source` into the folder `out` and return the content of its `export.json`.

    `heads` are all of the model; `size` (H, W) and `dynamic` ('batch', 'size') follow from the evaluation transforms:
    those that give all images one size make a graph of that size with any number of images. With `precision` 'float16'
    weights are stored in float16; with 'bfloat16' OpenVINO also computes in bfloat16. `inside` names what else the
    graph does ('preprocessing', 'predictions'): it takes uint8 images and resizes and normalises them, and gives boxes,
    label maps and scores. Raises ExportError, CheckpointError, ResourceError for a package that is not installed.
    """
    check_installed(runtime)
    model, info = read_model_folder(source)
    heads = _heads(model, heads)
    network, divisor = model.eval().network, model.network.divisor
    fixed = None if model.tiler is not None else fixed_size(info['transforms'])
    before = preprocessing_of(model, info['transforms']) if 'preprocessing' in inside else None
    tasks = check_tasks(model, heads) if 'predictions' in inside else None
    resizes = before is not None and before.resize is not None
    if dynamic is None:
        dynamic = ('batch',) if (size or fixed) and not resizes else ('batch', 'size')
    size = tuple(-(-side // divisor) * divisor for side in size or fixed or (16 * divisor, 20 * divisor))
    make_folder(out)
    graph = HeadsGraph(network, heads, before=before, tasks=tasks)
    write, format = (export_program, runtime) if runtime == 'torch-export' else (export_onnx, 'onnx')
    content = {
        'format': FORMAT,
        'version': vitdense.__version__,
        'torch': torch.__version__,
        'opset': OPSET,
        'heads': list(heads),
        'outputs': [list(slot) for slot in write(graph, out / GRAPHS[format][0], size=size, dynamic=dynamic)],
        'size': list(size),
        'dynamic': sorted(dynamic),
        'inside': sorted(inside),
        'resizes': resizes,
        'divisor': divisor,
        'mean': list(network.mean),
        'std': list(network.std),
    }
    shutil.copyfile(model_folder_of(source) / MODEL, out / MODEL)
    return complete(out, content, runtime=runtime, precision=precision)


def complete(
    folder: Path, content: Mapping[str, Any], *, runtime: Runtime = 'onnx', precision: Precision = 'float32'
) -> dict[str, Any]:
    """Turn the float32 `model.onnx` of a folder into the graph of `runtime`, and write `export.json`: `content` with
    runtime, precision and checksums, which is returned. A program of torch.export is left as it is.
    """
    finish(folder, runtime=runtime, half=precision != 'float32')
    content = {
        **content,
        'runtime': runtime,
        'precision': precision,
        'sha256': {name: sha256_of(folder / name) for name in GRAPHS[runtime]},
    }
    write_json(folder / INFO, content)
    return content


def quantize_folder(folder: Path, images: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Quantize an exported OpenVINO folder to INT8 in place, calibrated on `images` (3, H, W) uint8; return the content
    of its `export.json`, with the seconds of a pass in float32 and in INT8.

    Raises ExportError for another format, ResourceError where NNCF is not installed.
    """
    content = read_json(folder / INFO)
    path = folder / GRAPHS['openvino'][0]
    if content['runtime'] != 'openvino' or content['precision'] != 'float32':
        why = f'the graph is {content["runtime"]} in {content["precision"]}'
        raise ExportError('cannot quantize', where='--int8', why=why, fix='give --format openvino, without --half')
    graph, info = read_exported(folder)
    batches = _side(graph, graph.network, {}, info['transforms'], images).batches
    seconds = quantize(path, [graph.network.as_input(imgs) for imgs in batches])
    sums = {name: sha256_of(folder / name) for name in GRAPHS['openvino']}
    content |= {'precision': 'int8', 'calibration_images': len(images), 'int8_seconds': seconds, 'sha256': sums}
    write_json(folder / INFO, content)
    return content


def is_exported(folder: str | Path) -> bool:
    """Return whether a folder holds an exported model."""
    return (Path(folder) / INFO).is_file()


def read_exported(folder: str | Path, *, trusted: bool | None = None) -> tuple[DenseModel, dict[str, Any]]:
    """Return the model of an exported folder, whose network is the graph, and the content of its `model.json`.

    Only where it is `trusted` (default: as --trust-checkpoint says) a program of torch.export is read. Raises
    CheckpointError and ExportError for a folder that is damaged or not whole.
    """
    folder = Path(folder)
    if not (folder / MODEL).is_file():
        why = f'{MODEL} is missing, which names transforms and classes'
        raise ExportError('the folder of the exported model is damaged', where=str(folder), why=why, fix=AGAIN)
    info = read_description(folder / MODEL, CONTENT)
    check_recipes([info['recipe'], info['transforms']], folder / MODEL)
    try:
        content = read_json(folder / INFO)
        if content['format'] != FORMAT:
            raise ValueError(f'{INFO} has another format than this version of vitdense reads')
        for name in GRAPHS[content['runtime']]:
            if content['sha256'][name] != sha256_of(folder / name):
                raise ValueError(f'{name} is not the file that {INFO} names')
        network = GraphNetwork(folder, content, trusted=are_checkpoints_trusted() if trusted is None else trusted)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            'the folder of the exported model is damaged', where=str(folder), why=str(error), fix=AGAIN
        ) from error
    recipe = {**info['recipe'], 'network': network}
    recipe['tasks'] = {name: task for name, task in recipe['tasks'].items() if name in network.names}
    model = build(recipe, classes=info['classes'])
    if 'predictions' in content['inside']:
        model.tasks = {name: PredictionReader(task) for name, task in model.tasks.items()}
    return model, {**info, 'transforms': []} if network.preprocesses else info


def verify(source: str | Path, folder: Path, images: Sequence[torch.Tensor]) -> Verdict:
    """Run the model and its graph on `images` (3, H, W) uint8, and keep the verdict in `export.json`."""
    from vitdense.export.verify import compare  # imports much that a predictor does not need

    model, info = read_model_folder(source)
    graph, graph_info = read_exported(folder, trusted=True)  # it has just been made
    tasks = {name: model.tasks[name] for name in graph.network.names}
    theirs = _side(model, model.network, tasks, info['transforms'], images)
    ours = _side(graph, graph.network, graph.tasks, graph_info['transforms'], images)
    content = read_json(folder / INFO)
    level = LEVELS[content['precision']]
    if content['inside'] and level == 'exact':  # other arithmetic of the resize, and no outputs to compare
        level = 'close'
    verdict = compare(theirs, ours, level)
    write_json(folder / INFO, {**content, 'verdict': verdict.as_dict()})
    return verdict


def _side(model: DenseModel, network: Any, tasks: Mapping[str, Any], transforms: Any, images: Sequence) -> Side:
    """Return what is compared: a network, its input for each image, and how its outputs are read."""
    from vitdense.export.verify import Side

    pipeline = Pipeline(transforms)

    def prepare(number: int) -> Batch:
        size = (int(images[number].shape[-2]), int(images[number].shape[-1]))
        meta = Meta(number, '', 'export', size, size)
        sample = pipeline(Sample(tv_tensors.Image(images[number]), Target(), meta))
        return model.data_preprocessor(Batch(sample.img[None], [sample.target], [sample.meta]), False)

    batches = [prepare(number) for number in range(len(images))]

    def read(outputs: dict[str, Any], number: int) -> dict[str, Any]:
        return {name: task.predict(outputs[name], batches[number].metas)[0] for name, task in tasks.items()}

    return Side(network.eval(), [batch.imgs for batch in batches], read, lambda: prepare(0).imgs)


def fixed_size(transforms: Sequence[Any]) -> tuple[int, int] | None:
    """Return the (H, W) that evaluation transforms give all images, or None when it depends on the image."""
    pipeline, sizes = Pipeline(transforms), set()
    for height, width in SHAPES:
        image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
        meta = Meta(0, '', '', (height, width), (height, width))
        sizes.add(tuple(pipeline(Sample(image, Target(), meta)).img.shape[-2:]))
    return next(iter(sizes)) if len(sizes) == 1 else None


def _heads(model: DenseModel, heads: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(model.network.names)
    unknown = [head for head in heads or () if head not in names]
    if unknown:
        raise ExportError(
            f"the model has no head '{unknown[0]}'",
            where='--heads',
            why=f'its heads are {", ".join(names)}',
            fix='name some of them, separated by commas, or leave --heads out for all',
        )
    for head in filter(keyword.iskeyword, names):
        raise ExportError(
            f"torch cannot export a network with a head that is called '{head}'",
            where='the names of the heads',
            why='it is a word of the Python language, and torch writes the network as Python code',
            fix='rename the branch and its task in the config, and in the checkpoint with tools/merge_heads.py',
        )
    return tuple(heads) if heads else names
