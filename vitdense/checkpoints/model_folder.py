"""Model folders: `model.json` (data only) and `model.safetensors`, which are loaded without running code from them.

`model.json` holds `format`, the `recipe` of the model with dotted types, `classes` ({field: names}), `palette`,
`category_ids` (of the annotation file, where it has some), the evaluation `transforms`, `mean` and `std`, the version
of vitdense, the `operating_points` of each head (score thresholds) and the `metrics`, where there was a validation, and
the SHA-256 of the weights. `README.md` is a model card, `SHA256SUMS` has the hashes of all files. Types are looked up
only among the parts of vitdense and torchvision's v2 transforms.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import vitdense
from vitdense.checkpoints.descriptions import (
    FORMAT,
    check_recipes,
    described_weights,
    description_error,
    read_description,
    without_pretrained,
)
from vitdense.checkpoints.limits import limit_tensors
from vitdense.checkpoints.model_card import name_of, write_card
from vitdense.checkpoints.omitted_weights import needs_pretrained, restore_omitted, without_lora
from vitdense.data.transforms.common import Pipeline
from vitdense.model import DenseModel
from vitdense.registry import build
from vitdense.storage.atomic import disk_error, read_json, sha256_of, sync_folder, write_json
from vitdense.storage.weights import load_weights, read_weights, save_weights

WEIGHTS = 'model.safetensors'
METAINFO = ('classes', 'palette', 'category_ids')  # keys of a data set's metainfo that are stored
CONTENT = ('recipe', 'classes', 'transforms')  # required keys of model.json


def save_model_folder(
    folder: str | Path,
    recipe: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    metainfo: Mapping[str, Any],
    transforms: Sequence[Mapping[str, Any]] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder atomically.

    `recipe` is a config's `model`, `state` its weights, `metainfo` that of the data set (`METAINFO`), `transforms` the
    recipes of the evaluation transforms. `extra` is added to the json file as it is. Raises
    DiskError.
    """
    folder = Path(folder)
    temporary = folder.with_name(f'{folder.name}.tmp.{os.getpid()}')
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process of the same number
    content = {
        'format': FORMAT,
        'vitdense': vitdense.__version__,
        'recipe': without_pretrained(recipe),
        'classes': metainfo.get('classes', {}),
        'palette': metainfo.get('palette', {}),
        'category_ids': metainfo.get('category_ids', {}),
        'transforms': list(transforms),
        'licence': 'The weights follow the licences of their pretraining and of the data they were trained on.',
        **(extra or {}),
    }
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        save_weights(temporary / WEIGHTS, state)
        content['weights'] = {'file': WEIGHTS, 'sha256': sha256_of(temporary / WEIGHTS)}
        write_json(temporary / 'model.json', content)
        write_card(temporary, {'name': name_of(folder), **content})
        _replace_folder(temporary, folder)
    except OSError as error:
        raise disk_error(folder, error, what=f"the model folder '{folder.name}'") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its name, replacing an earlier one. Raises OSError, also for a file of that name."""
    old = folder.with_name(f'{folder.name}.old.{os.getpid()}')
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, 'a file stands in its place', str(folder))
        os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def set_operating_points(folder: str | Path, points: Mapping[str, Any]) -> None:
    """Replace the score thresholds of a model folder by `{head: points}`. Raises CheckpointError, DiskError."""
    path = model_folder_of(folder) / 'model.json'
    info = {**read_json(path), 'operating_points': dict(points)}
    read_description(path, CONTENT)
    try:
        write_json(path, info)
        write_card(path.parent, {'name': name_of(path.parent), **info})
    except OSError as error:
        raise disk_error(path, error, what='the score thresholds') from error


def read_model_folder(folder: str | Path) -> tuple[DenseModel, dict[str, Any]]:
    """Return the model of a folder with its weights, and the content of `model.json`.

    Raises CheckpointError when a file is missing or damaged, or when a recipe names anything but parts of vitdense
    and torchvision's v2 transforms.
    """
    path = model_folder_of(folder) / 'model.json'
    info = read_description(path, CONTENT)
    check_recipes([info['recipe'], info['transforms']], path)
    weights = described_weights(path, info)
    state = read_weights(weights)
    with limit_tensors(state, path):
        model = build(info['recipe'], classes=info['classes'])
        Pipeline(info['transforms'])
    if not isinstance(model, DenseModel):
        raise description_error(path, 'the recipe is not a model', f'it makes a {type(model).__name__}')
    load_weights(model, state, where=str(weights))
    return model, info


def model_folder_of(path: str | Path) -> Path:
    """Return the model folder that `path` names: itself, or the one in the work directory of a run."""
    path = Path(path)
    inside = path / 'model'
    return inside if (inside / 'model.json').is_file() and not (path / 'model.json').is_file() else path


def build_trained(
    recipe: Mapping[str, Any],
    classes: Mapping[str, Sequence[str]],
    state: Mapping[str, Tensor],
    *,
    where: str,
    omitted: Mapping[str, Any] | None = None,
) -> DenseModel:
    """Return the model of a recipe with the weights `state`, read from the file `where`.

    They are those of the whole model except `omitted` pretrained weights, with LoRA merged or not; or, where every head
    loads the classifier of the pretrained file, a file with names of timm, which the backbone reads. Raises
    CheckpointError when they do not fit.
    """
    if not any(name.endswith('.lora_a') for name in state):
        recipe = without_lora(recipe)
    if reads_classifier(recipe) and not any('network.' in name for name in state):
        network = {**recipe['network'], 'backbone': {**recipe['network']['backbone'], 'pretrained': where}}
        return build({**recipe, 'network': network}, classes=classes)
    model = build(recipe if needs_pretrained(recipe, omitted) else without_pretrained(recipe), classes=classes)
    load_weights(model, restore_omitted(state, omitted, model, where=where), where=where)
    return model


def reads_classifier(recipe: Mapping[str, Any]) -> bool:
    """Whether every head of a model recipe loads the classifier of the pretrained file."""
    network = recipe.get('network')
    branches = network.get('branches') if isinstance(network, Mapping) else None
    heads = [branch.get('head') for branch in (branches or {}).values()]
    return bool(heads) and all(isinstance(head, Mapping) and head.get('pretrained') for head in heads)
