"""Features for probing: the inputs of the linear layer of the config's head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.errors import ConfigError, did_you_mean
from vitdense.heads.classify import ClassHead
from vitdense.heads.linear import LinearHead
from vitdense.model import DenseModel
from vitdense.ops.padding import resize
from vitdense.probing.feature_cache import ImageFeatures
from vitdense.registry import resolve
from vitdense.types import Batch, Features

WEIGHT_ARGUMENTS = ('pretrained', 'partial_weights', 'patch_size', 'img_size', 'timm_args', 'lora', 'stem', 'windows')


class FeatureExtractor:
    """Extracts the inputs of the linear layer of branch `name` of `model`, with the labels.

    With `image_level` they are one float32 vector for each image, else float16 maps.
    """

    def __init__(self, model: DenseModel, name: str) -> None:
        self.model, self.name = model, name
        self.task = model.tasks[name]
        head = model.network.heads[name]
        self.image_level = isinstance(head, ClassHead)
        self.weights: dict[str, Tensor] = model.network.backbone.state_dict()
        self.device = next(model.network.backbone.parameters()).device
        self.dim = head.classifier.weight.shape[1]
        model.network.heads[name] = _HeadInput(head)

    @torch.inference_mode()
    def read(self, batch: Batch) -> list[ImageFeatures]:
        """Return the features of a batch in its order. Images of one size run together, so that none is padded."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, meta in enumerate(batch.metas):
            groups[meta.size].append(row)
        records: dict[int, ImageFeatures] = {}
        for (height, width), rows in groups.items():
            imgs, metas = batch.imgs[rows][..., :height, :width], [batch.metas[row] for row in rows]
            ready = self.model.data_preprocessor(Batch(imgs, [batch.targets[row] for row in rows], metas))
            features = self.model(ready.imgs, valid=ready.valid)[self.name].float().cpu()
            input_size = tuple(ready.imgs.shape[-2:])
            for row, values in zip(rows, features, strict=True):
                records[row] = self._record(values, batch.targets[row], input_size, (height, width))
        return [records[row] for row in range(len(batch.metas))]

    def _record(self, values: Tensor, target: Any, input_size: tuple[int, int], size: tuple[int, int]) -> ImageFeatures:
        target = target.value_of(self.task.field)
        holds = target is not None and not (self.image_level and target.ndim)
        why = f'a probe is trained on one class for each {"image" if self.image_level else "pixel"}'
        check(holds, self.task.field, target, why, 'probe with labelled images of one class each')
        if self.image_level:
            return ImageFeatures(values, target.long(), (1, 1), input_size, size)
        grid = tuple(values.shape[-2:])
        cells = values.flatten(1).T.contiguous().half()  # (C, h, w) -> (h * w, C)
        return ImageFeatures(cells, target, grid, input_size, size)


class _HeadInput(nn.Module):
    """Replaces a head and returns the input of its linear layer."""

    def __init__(self, head: ClassHead | LinearHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Features) -> Tensor:
        if isinstance(self.head, ClassHead):
            return self.head.embed(features)
        size = tuple(features.maps[0].shape[-2:])
        return torch.cat([resize(x, size, None) for x in features.maps], dim=1)


def choose_branch(recipe: Mapping[str, Any], name: str | None) -> str:
    """Return the branch to probe: `name`, or the first whose head is linear. Raises ConfigError where there is none."""
    network = (recipe.get('model') or {}).get('network') or {}
    branches = network.get('branches') or {}
    linear = [key for key, branch in branches.items() if resolve(branch['head']['type']) in (ClassHead, LinearHead)]
    if linear and (name is None or name in linear):
        return name or linear[0]
    raise ConfigError(
        f"the branch '{name}' cannot be probed{did_you_mean(name, linear)}"
        if name
        else 'the config has no linear head',
        where='model.network.branches',
        why=f'a probe takes the place of a ClassHead or a LinearHead; those are: {", ".join(linear) or "none"}',
        fix=f'write --branch {linear[0]}'
        if linear
        else 'probe a config such as configs/semantic/linear_vit_ti_camvid.py',
    )


def check_probeable(model: DenseModel, name: str) -> None:
    """Raise ConfigError when something between backbone and linear layer has to be trained."""
    network = model.network
    head = network.heads[name]
    trained = 'the adapter' if next(network.adapters[name].parameters(), None) is not None else ''
    if isinstance(head, ClassHead) and head.pool == 'attention':
        trained = "the pooling (pool='attention')"
    why = f'{trained} has weights of its own, and features are probed as the backbone returns them'
    fix = "use adapter=dict(type=PlainMaps), and pool='token', 'average' or 'both' in a ClassHead"
    check(not trained, 'model.network.branches', name, why, fix)


def with_backbone(
    recipe: Mapping[str, Any], backbones: Sequence[str], weights: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return (label, recipe) of every backbone to probe. Raises ConfigError for one without name."""
    if not backbones and not weights:
        return [(_label(recipe.get('name', 'backbone'), recipe.get('pretrained', '')), dict(recipe))]
    labelled = [(_label(recipe.get('name', 'backbone'), file), {**recipe, 'pretrained': file}) for file in weights]
    for backbone in backbones:
        name, _, file = backbone.partition('=')
        why = "a backbone is timm's name, or NAME=FILE with weights of one's own"
        check(bool(name), '--backbones', backbone, why, 'write --backbones vit_tiny_patch16_224=WEIGHTS.safetensors')
        kept = {key: value for key, value in recipe.items() if key not in WEIGHT_ARGUMENTS}
        labelled.append((_label(name, file or True), {**kept, 'name': name, 'pretrained': file or True}))
    return labelled


def _label(name: str, source: Any) -> str:
    if isinstance(source, bool) or not source:
        return name if source else f'{name}, random'
    return f'{name}, {Path(source).name}'
