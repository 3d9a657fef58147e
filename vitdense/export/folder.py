"""Folders of exported models: `model.onnx`, `export.json` and the `model.json` of the model, without its weights."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchvision import tv_tensors

import vitdense
from vitdense.checkpoints.descriptions import check_recipes, read_description
from vitdense.checkpoints.model_folder import CONTENT, model_folder_of, read_model_folder
from vitdense.data.transforms.common import Pipeline
from vitdense.errors import ExportError
from vitdense.export.graph import OPSET, export_onnx
from vitdense.export.runtime import OnnxNetwork
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.storage.atomic import make_folder, sha256_of, write_json
from vitdense.types import Batch, Meta, Sample, Target

if TYPE_CHECKING:
    from vitdense.export.verify import Verdict

logger = logging.getLogger('vitdense')
GRAPH, INFO, MODEL = 'model.onnx', 'export.json', 'model.json'
FORMAT = 1
SHAPES = ((480, 640), (640, 480))  # of images that tell whether transforms give all images one size


def export_model(
    source: str | Path,
    out: Path,
    *,
    heads: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    dynamic: Collection[str] | None = None,
) -> dict[str, Any]:
    """Export the model folder `source` into the folder `out` and return the content of its `export.json`.

    `heads` are all of the model; `size` (H, W) and `dynamic` ('batch', 'size') follow from the evaluation transforms:
    those that give all images one size make a graph of that size with any number of images. Raises ExportError,
    CheckpointError, ResourceError.
    """
    model, info = read_model_folder(source)
    heads = _heads(model, heads)
    network, divisor = model.eval().network, model.network.divisor
    fixed = None if model.tiler is not None else fixed_size(info['transforms'])
    if dynamic is None:
        dynamic = ('batch',) if size or fixed else ('batch', 'size')
    size = tuple(-(-side // divisor) * divisor for side in size or fixed or (16 * divisor, 20 * divisor))
    make_folder(out)
    slots = export_onnx(network, out / GRAPH, heads=heads, size=size, dynamic=dynamic)
    content = {
        'format': FORMAT,
        'version': vitdense.__version__,
        'torch': torch.__version__,
        'opset': OPSET,
        'heads': list(heads),
        'outputs': [list(slot) for slot in slots],
        'size': list(size),
        'dynamic': sorted(dynamic),
        'divisor': divisor,
        'mean': list(network.mean),
        'std': list(network.std),
        'sha256': sha256_of(out / GRAPH),
    }
    shutil.copyfile(model_folder_of(source) / MODEL, out / MODEL)
    write_json(out / INFO, content)
    return content


def is_exported(folder: str | Path) -> bool:
    """Return whether a folder holds an exported model."""
    return (Path(folder) / INFO).is_file()


def read_exported(folder: str | Path) -> tuple[DenseModel, dict[str, Any]]:
    """Return the model of an exported folder, whose network is the graph, and the content of its `model.json`.

    Raises CheckpointError and ExportError for a folder that is damaged or not whole.
    """
    folder = Path(folder)
    info = read_description(folder / MODEL, CONTENT)
    check_recipes([info['recipe'], info['transforms']], folder / MODEL)
    try:
        content = json.loads((folder / INFO).read_text(encoding='utf-8'))
        if content['format'] != FORMAT or content['sha256'] != sha256_of(folder / GRAPH):
            raise ValueError(f'{GRAPH} or the format is not what {INFO} says')
        network = OnnxNetwork(folder / GRAPH, content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            'the folder of the exported model is damaged', where=str(folder), why=str(error), fix='export it again'
        ) from error
    recipe = {**info['recipe'], 'network': network}
    recipe['tasks'] = {name: task for name, task in recipe['tasks'].items() if name in network.names}
    return build(recipe, classes=info['classes']), info


def verify(source: str | Path, folder: Path, images: Sequence[torch.Tensor]) -> Verdict:
    """Run the model and its graph on `images` (3, H, W) uint8, and keep the verdict in `export.json`."""
    model, info = read_model_folder(source)
    exported, _ = read_exported(folder)
    pipeline = Pipeline(info['transforms'])
    batches, metas = [], []
    for number, image in enumerate(images):
        size = (int(image.shape[-2]), int(image.shape[-1]))
        meta = Meta(number, '', 'export', size, size)
        sample = pipeline(Sample(tv_tensors.Image(image), Target(), meta))
        batch = model.data_preprocessor(Batch(sample.img[None], [sample.target], [sample.meta]), False)
        batches.append(batch.imgs)
        metas.append(sample.meta)
    tasks = {name: model.tasks[name] for name in exported.network.names}
    from vitdense.export.verify import compare  # imports much that a predictor does not need

    verdict = compare(
        model.eval().network,
        exported.network,
        batches,
        lambda outputs, number: {name: task.predict(outputs[name], [metas[number]])[0] for name, task in tasks.items()},
    )
    content = json.loads((folder / INFO).read_text(encoding='utf-8'))
    write_json(folder / INFO, {**content, 'verdict': verdict.as_dict()})
    return verdict


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
    return tuple(heads) if heads else names
