"""Head files: one branch of a model in a small file, valid for the backbone it was trained on.

A head is a branch of a `SharedNetwork` (adapter and head) with the task that reads it. `NAME.safetensors` holds its
weights as `adapter.*` and `head.*`; `NAME.json` (data only) holds `format` 1, `name`, the recipes `branch` and `task`,
`field` and its `classes`, `palette` and `category_ids`, the evaluation `transforms` and `tiler` it was validated with,
the fingerprint of its `backbone`, the version of vitdense, and the SHA-256 of the weights.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

import vitdense
from vitdense.checkpoints.descriptions import (
    FORMAT,
    check_recipes,
    described_weights,
    read_description,
    without_pretrained,
)
from vitdense.checkpoints.model_folder import METAINFO, read_model_folder
from vitdense.errors import CheckpointError, ConfigError, did_you_mean
from vitdense.model import DenseModel
from vitdense.pretrained.hub_names import plain_name
from vitdense.registry import resolve
from vitdense.storage.atomic import disk_error, sha256_of, write_json
from vitdense.storage.weights import read_weights, save_weights

CONTENT = ('branch', 'task', 'field', 'classes', 'transforms', 'backbone')  # required keys of NAME.json
BACKBONE = 'network.backbone.'
# arguments of a backbone that affect training only; the position table is part of the weights
TRAINING = ('pretrained', 'partial_weights', 'frozen', 'checkpointing', 'drop_path', 'lora', 'amp', 'img_size')


class Head(NamedTuple):
    """A branch and its task, with their weights."""

    name: str
    branch: Mapping[str, Any]  # recipes of adapter and head
    task: Mapping[str, Any]  # recipe
    field: str  # of `Target`, which the task reads; '' for none
    metainfo: Mapping[str, Any]  # what is known of the classes: see `METAINFO`; each without the field
    transforms: Any  # recipes of the evaluation transforms
    tiler: Any  # recipe or None
    backbone: Mapping[str, Any]  # fingerprint
    state: Mapping[str, Tensor]  # 'adapter.*' and 'head.*'


def fingerprint(model: DenseModel, recipe: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a fingerprint of a model's backbone: heads can be exchanged between equal ones.

    It holds the SHA-256 of the weights, the patch size, windows, normalisation (mean and std), the interacting adapter
    where one wraps the ViT, and how the ViT is built. `recipe` and `state` are those of the model, as a model folder
    holds them: complete, LoRA merged.
    """
    backbone, network = recipe['network']['backbone'], model.network
    vit = backbone.get('vit', backbone)
    metadata = {
        'weights': _sha256({name: value for name, value in state.items() if name.startswith(BACKBONE)}),
        'patch size': network.backbone.patch_size,
        'windows': _spelled(vit.get('windows')),
        'mean': [round(float(value), 6) for value in network.mean],
        'std': [round(float(value), 6) for value in network.std],
        'interacting adapter': _spelled({key: part for key, part in backbone.items() if key != 'vit'})
        if vit is not backbone
        else None,
        'ViT': _spelled({key: part for key, part in vit.items() if key not in ('windows', 'patch_size')}),
    }
    return json.loads(json.dumps(metadata, default=list))


def _sha256(state: Mapping[str, Tensor]) -> str:
    """Return the hash of names, shapes and numbers (as float32, which is what files of weights are read as)."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu()
        value = (value.float() if value.is_floating_point() else value.long()).contiguous()
        digest.update(f'{name} {tuple(value.shape)}'.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _spelled(part: Any) -> Any:
    """Return a recipe with its defaults written out and without what matters in training only."""
    if isinstance(part, list | tuple):
        return [_spelled(item) for item in part]
    if not isinstance(part, Mapping):
        return part
    defaults = {}
    if 'type' in part:
        parameters = inspect.signature(resolve(part['type'])).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    whole = {**defaults, **part}
    if 'name' in whole:
        whole['name'] = plain_name(str(whole['name'])).split('.')[0]  # without the tag: weights are hashed themselves
    kept = {key: value for key, value in whole.items() if key not in TRAINING and not key.endswith('drop_rate')}
    return {key: _spelled(kept[key]) for key in sorted(kept)}


def check_backbone(head: Head, backbone: Mapping[str, Any], *, where: str) -> None:
    """Raise CheckpointError unless `head` was trained on the backbone with that fingerprint."""
    different = [key for key in backbone if head.backbone.get(key) != backbone[key]]
    if not different:
        return
    reasons = [
        f'{key}: {_short(backbone[key])} here, {_short(head.backbone.get(key))} under the head' for key in different
    ]
    raise CheckpointError(
        f"the head '{head.name}' was trained on another backbone: other {', '.join(different)}",
        where=where,
        why='\n'.join(reasons),
        fix='a head reads one backbone only: train it on this one with tools/train.py CONFIG --add-head NAME',
    )


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value[:12]
    return text if len(text) <= 100 else text[:99] + '…'


def extract_head(
    model: DenseModel,
    name: str,
    *,
    recipe: Mapping[str, Any],
    state: Mapping[str, Tensor],
    metainfo: Mapping[str, Any],
    transforms: Any = (),
) -> Head:
    """Return the head `name` of a model with that recipe and weights. Raises ConfigError when it has none."""
    branches = recipe['network'].get('branches') or {}
    if name not in branches:
        raise ConfigError(
            f"the model has no head '{name}'{did_you_mean(name, branches)}",
            where=f'--head {name}',
            why=f'its heads are: {", ".join(branches) or "none that is a branch"}',
            fix='name one of them',
        )
    field = model.tasks[name].field
    parts = {'adapter.': f'network.adapters.{name}.', 'head.': f'network.heads.{name}.'}
    own = {
        ours + full.removeprefix(theirs): value
        for ours, theirs in parts.items()
        for full, value in state.items()
        if full.startswith(theirs)
    }
    known = {key: (metainfo.get(key) or {}).get(field) for key in METAINFO}
    task, tiler = recipe['tasks'][name], recipe.get('tiler')
    backbone = fingerprint(model, recipe, state)
    return Head(name, without_pretrained(branches[name]), task, field, known, transforms, tiler, backbone, own)


def save_head(folder: str | Path, head: Head) -> Path:
    """Write `NAME.safetensors` and then `NAME.json`, which counts; return the latter. Raises DiskError."""
    folder = Path(folder)
    weights = folder / f'{head.name}.safetensors'
    save_weights(weights, head.state)
    content = {
        'format': FORMAT,
        'vitdense': vitdense.__version__,
        'name': head.name,
        'branch': head.branch,
        'task': head.task,
        'field': head.field,
        **{key: head.metainfo.get(key) for key in METAINFO},
        'transforms': list(head.transforms),
        'tiler': head.tiler,
        'backbone': head.backbone,
        'licence': 'The weights follow the licences of the data they were trained on.',
        'weights': {'file': weights.name, 'sha256': sha256_of(weights)},
    }
    path = folder / f'{head.name}.json'
    try:
        write_json(path, content)
    except OSError as error:
        raise disk_error(path, error) from error
    return path


def read_head(path: str | Path, name: str) -> Head:
    """Return a head under the name `name`, from its json or safetensors file, or out of a model folder.

    Nothing in the files is run. Raises CheckpointError for files that are damaged or name parts of other programs,
    ConfigError when a model folder has no such head.
    """
    path = Path(path)
    if (path / 'model.json').is_file():
        model, info = read_model_folder(path)
        parts = dict(recipe=info['recipe'], state=model.state_dict(), metainfo=info, transforms=info['transforms'])
        return extract_head(model, name, **parts)
    description = path.with_suffix('.json')
    info = read_description(description, CONTENT)
    check_recipes([info['branch'], info['task'], info['transforms'], info.get('tiler')], description)
    state = read_weights(described_weights(description, info))
    known = {key: info.get(key) for key in METAINFO}
    others = known, info['transforms'], info.get('tiler'), info['backbone'], state
    return Head(name, info['branch'], info['task'], info['field'], *others)


def weights_of(head: Head) -> dict[str, Tensor]:
    """Return the weights of a head under the names that a model has for them."""
    prefixes = {'adapter': f'network.adapters.{head.name}', 'head': f'network.heads.{head.name}'}
    split = {name: name.partition('.') for name in head.state}
    unknown = [name for name, (part, _, _) in split.items() if part not in prefixes]
    if unknown:
        raise CheckpointError(
            f"the file of the head '{head.name}' holds other weights",
            where=head.name,
            why=f'{unknown[0]} is neither adapter.* nor head.*',
            fix='give a file that --add-head or merge-heads wrote',
        )
    return {f'{prefixes[part]}.{rest}': head.state[name] for name, (part, _, rest) in split.items()}
