"""Frozen pretrained weights, omitted from checkpoints because the pretrained file has them.

A module lists them in `omitted_weights`: the names of its tensors from the pretrained file that are never trained (of
a ViT with LoRA). A checkpoint holds mean and standard deviation of each, so that another file is noticed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitdense.errors import CheckpointError
from vitdense.layers.lora import merge_lora
from vitdense.protocols import PartlyPretrained
from vitdense.storage.tensor_shards import whole

TOLERANCE = 1e-3  # relative to the standard deviation: resampled kernels differ slightly between machines


def describe_omitted(model: nn.Module) -> dict[str, list[float]]:
    """Return `{name: [mean, standard deviation]}` of the omitted weights of `model`."""
    names = [
        f'{prefix}.{name}' if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, PartlyPretrained)
        for name in module.omitted_weights
    ]
    state = model.state_dict()
    values = ((name, whole(state[name]).double()) for name in names)  # one after the other: they may be large
    return {name: [value.mean().item(), value.std(correction=0).item()] for name, value in values}


def needs_pretrained(recipe: Mapping[str, Any], omitted: Mapping[str, Any] | None) -> bool:
    """Whether a model must load its pretrained weights to complete a checkpoint: only where the recipe has LoRA, since
    a checkpoint alone must not make a model look for weights.
    """
    return bool(omitted) and without_lora(recipe) != recipe


def restore_omitted(
    state: Mapping[str, Tensor], omitted: Mapping[str, Any] | None, model: nn.Module, *, where: str
) -> dict[str, Tensor]:
    """Return `state` with the omitted tensors of its checkpoint, taken from `model`, which has loaded them.

    `omitted` is their description in the checkpoint. Raises CheckpointError when `model` has others, or none.
    """
    if not omitted:
        return dict(state)
    own = describe_omitted(model)
    absent = [name for name in omitted if name not in own]
    other = [name for name in omitted if name in own and not _alike(omitted[name], own[name])]
    if absent or other:
        names = ', '.join((absent or other)[:3])
        raise CheckpointError(
            f'the checkpoint builds on {len(omitted)} pretrained tensors, '
            + (f'of which the model loads {len(omitted) - len(absent)}' if absent else 'and these are others'),
            where=where,
            why=f'{names}, ...: LoRA checkpoints hold only what was trained',
            fix='use the config of that run, with the same model.network.backbone.pretrained; or the folder model/',
        )
    weights = model.state_dict()
    return {**{name: weights[name] for name in omitted}, **state}


def _alike(first: list[float], second: list[float]) -> bool:
    slack = TOLERANCE * max(first[1], second[1]) + 1e-9
    return all(math.isclose(one, other, rel_tol=0, abs_tol=slack) for one, other in zip(first, second, strict=True))


def merge_and_complete(
    model: nn.Module, recipe: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the recipe and the weights of a model that needs nothing else: LoRA is merged, omitted tensors are there.

    `model` is one of that recipe; `state` are the weights of a checkpoint of it. `model` stays as it is.
    """
    merged = without_lora(recipe)
    if merged == recipe:
        return merged, dict(state)
    plain = copy.deepcopy(model).cpu()
    plain.load_state_dict({**plain.state_dict(), **state})
    merge_lora(plain)
    return merged, plain.state_dict()


def without_lora(recipe: Any) -> Any:
    """Return a model recipe whose parts have no LoRA, as after a merge."""
    if isinstance(recipe, Mapping):
        return {key: without_lora(value) for key, value in recipe.items() if key != 'lora'}
    if isinstance(recipe, list | tuple):
        return type(recipe)(without_lora(item) for item in recipe)
    return recipe
