"""One ViT pass, any number of heads."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from vitdense.arguments import check
from vitdense.errors import ConfigError, did_you_mean
from vitdense.ops.padding import whole_cells
from vitdense.protocols import (
    Adapter,
    Backbone,
    ClassifyingHead,
    ClassTokenBackbone,
    FeatureHead,
    PretrainedHead,
    PyramidBackbone,
    WrappingBackbone,
)
from vitdense.registry import build, check_part, resolve, takes
from vitdense.types import Features, LayerRequest, Outputs

_log = logging.getLogger('vitdense')


class SharedNetwork(nn.Module):
    """A backbone and its branches, each an adapter and a head. The backbone runs once for all of them.

    `backbone` is `(imgs, valid, layers=...) -> Features` with the attributes `embed_dim`, `depth`, `patch_size`,
    `divisor`, `mean` and `std`; one that makes a pyramid itself (an interacting adapter around a ViT) has
    `out_channels` and `strides` too. `branches` maps a name to `dict(adapter=..., head=...)`; backbone, adapters and
    heads are parts or recipes. `num_classes` maps names to the numbers of classes of the data set. The adapter gets the
    channels and strides of the backbone, and the head those of the adapter, so no recipe repeats them. Weights of the
    backbone that no branch reads (blocks behind the last requested layer; the final norm, if no branch requests it) are
    frozen. A head that takes `cls_channels` gets the widths of the class tokens, and one with `pretrained` gets the
    classifier of the backbone's checkpoint.

    Raises ConfigError, before any weight is made, when the number of classes of a head is unknown or contradicts
    `num_classes`; and when an adapter requests a layer that the backbone does not have.
    """

    def __init__(
        self,
        backbone: nn.Module | dict,
        branches: Mapping[str, Mapping[str, nn.Module | dict]],
        *,
        num_classes: Mapping[str, int] | None = None,
    ) -> None:
        num_classes = dict(num_classes or {})
        _check_branches(branches)
        _check_num_classes(branches, num_classes)
        super().__init__()
        self.names = tuple(branches)
        self.backbone = check_part(build(backbone), Backbone, 'network.backbone')
        self.adapters = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for name, branch in branches.items():
            adapter = check_part(self._adapter(branch['adapter']), Adapter, f'network.branches.{name}.adapter')
            extra = {'num_classes': num_classes[name]} if name in num_classes else {}
            if takes(branch['head'], 'cls_channels'):  # one for each layer that the adapter requests
                extra['cls_channels'] = (self.backbone.embed_dim,) * len(adapter.layers) * self._has_cls()
            self.adapters[name] = adapter
            head = build(branch['head'], in_channels=adapter.out_channels, strides=adapter.strides, **extra)
            self.heads[name] = check_part(head, FeatureHead, f'network.branches.{name}.head')
        self.divisor = self.backbone.divisor
        self.mean = tuple(self.backbone.mean)
        self.std = tuple(self.backbone.std)
        self._wanted = {name: _blocks(name, adapter, self.backbone.depth) for name, adapter in self.adapters.items()}
        self.trainable_branches = self.names  # those that run in training
        self._others_frozen = False  # all parts but those of `trainable_branches`
        _freeze_unused(self.backbone, self._union(self.names))
        for name, head in self.heads.items():
            if isinstance(head, PretrainedHead) and head.pretrained:
                self._load_classifier(name)

    def forward(
        self,
        imgs: Tensor,
        valid: Tensor | None = None,
        training_inputs: Mapping[str, Any] | None = None,
        names: tuple[str, ...] | None = None,
    ) -> dict[str, Outputs]:
        """Return the outputs of a batch: `imgs` (B, 3, H, W) float32 normalised, H and W multiples of `divisor`.

        `valid` (B, H, W) bool is False on padding. `training_inputs` are denoising queries by branch. Only the branches
        `names` run; by default all of them, in training mode `trainable_branches`.
        """
        if valid is not None:
            valid = whole_cells(valid, self.divisor)  # the same extent of an image for all parts
        names = names or (self.trainable_branches if self.training else self.names)
        layers = self._union(names)
        features = self.backbone(imgs, valid, layers=layers)
        outputs = {}
        for name in names:
            maps = self.adapters[name](self._select(features, layers, self._wanted[name]), imgs)
            inputs = (training_inputs or {}).get(name)
            outputs[name] = self.heads[name](maps, **({} if inputs is None else {'denoising_queries': inputs}))
        return outputs

    def freeze_except(self, name: str) -> None:
        """Freeze the backbone and all branches but `name`, and keep them in evaluation mode after `train()`.

        The outputs of the other branches stay bit-equal. A training pass runs only the blocks that this branch reads.
        """
        self.trainable_branches, self._others_frozen = (name,), True
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> SharedNetwork:
        """Set training mode; parts frozen by `freeze_except` stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        others = [name for name in self.names if name not in self.trainable_branches]
        branches = [parts[name] for name in others for parts in (self.adapters, self.heads)]
        return [self.backbone, *branches] if self._others_frozen else []

    def _adapter(self, part: nn.Module | dict) -> nn.Module:
        """Build the adapter of a branch with those attributes of the backbone that it takes."""
        context = {'has_cls': self._has_cls()}
        if isinstance(self.backbone, PyramidBackbone):
            context |= {'own_channels': self.backbone.out_channels, 'own_strides': self.backbone.strides}
        taken = {name: value for name, value in context.items() if takes(part, name)}
        return build(part, in_channels=self.backbone.embed_dim, patch_stride=self.backbone.patch_size, **taken)

    def _has_cls(self) -> bool:
        return isinstance(self.backbone, ClassTokenBackbone) and bool(self.backbone.has_cls)

    def _load_classifier(self, name: str) -> None:
        """Give a head the classifier of the backbone's checkpoint. Raises ConfigError, CheckpointError."""
        classifier = self.backbone.read_classifier()
        wanted = (LayerRequest(self.backbone.depth - 1, classifier.normed),)
        words = 'with' if classifier.normed else 'without'
        why = f'the classifier of the checkpoint reads other tokens: of the last layer, {words} the final norm'
        fix = f'write adapter=dict(type=PlainMaps, normed={classifier.normed}), or pretrained=False in the head'
        check(self._wanted[name] == wanted, f'network.branches.{name}.adapter.layers', self._wanted[name], why, fix)
        self.heads[name].load_classifier(classifier)

    def _union(self, names: Iterable[str]) -> tuple[LayerRequest, ...]:
        """Return the layer requests of the branches `names`, each once."""
        return tuple(dict.fromkeys(request for name in names for request in self._wanted[name]))

    def _select(
        self, features: Features, layers: tuple[LayerRequest, ...], wanted: tuple[LayerRequest, ...]
    ) -> Features:
        """Return `features`, which are those of `layers`, with only the wanted ones, in their order."""
        rows = [layers.index(request) for request in wanted]
        return features._replace(
            layers=tuple(features.layers[row] for row in rows),
            cls=tuple(features.cls[row] for row in rows) if features.cls else (),
        )


def _freeze_unused(backbone: nn.Module, layers: tuple[LayerRequest, ...]) -> None:
    """Freeze what no branch reads: distributed training waits for a gradient of every parameter that may have one."""
    vit = backbone
    if isinstance(backbone, WrappingBackbone):  # it reads some layers itself
        vit, layers = backbone.vit, (*layers, *backbone.reads)
    last = max(request.index for request in layers) + 1  # as `layer_of` counts: 0 is the embedding
    normed = any(request.normed for request in layers)
    unused = []
    for name, parameter in vit.named_parameters():
        layer = vit.layer_of(name)
        behind = last < layer <= vit.depth
        if parameter.requires_grad and (behind or (layer > vit.depth and not normed)):
            parameter.requires_grad_(False)
            unused.append(name)
    if unused:
        _log.info('frozen, because no branch reads them: %s', ', '.join(unused))


def _blocks(name: str, adapter: nn.Module, depth: int) -> tuple[LayerRequest, ...]:
    """Return the adapter's layer requests with block numbers counted from 0. Raises ConfigError."""
    why = f'layers of a backbone with {depth} blocks are numbered from 0 to {depth - 1}; -1 is the last'
    fix = f'give the adapter layers between 0 and {depth - 1}, or choose a deeper backbone'
    for request in adapter.layers:
        check(-depth <= request.index < depth, f'branches.{name}.adapter: layer', request.index, why, fix)
    return tuple(LayerRequest(request.index % depth, request.normed) for request in adapter.layers)


def _check_branches(branches: Mapping[str, Mapping[str, Any]]) -> None:
    parts = ('adapter', 'head')
    fix = 'add a branch: branches=dict(sem=dict(adapter=..., head=...))'
    check(bool(branches), 'network.branches', branches, 'a network needs at least one branch', fix)
    for name, branch in branches.items():
        odd = [key for key in branch if key not in parts] or [part for part in parts if branch.get(part) is None]
        if odd:
            what = f'has no {odd[0]!r}' if odd[0] in parts else f'takes no {odd[0]!r}{did_you_mean(odd[0], parts)}'
            raise ConfigError(
                f'a branch {what}',
                where=f'network.branches.{name}',
                why='a branch is exactly dict(adapter=..., head=...)',
                fix=f'add {odd[0]}=... to the branch' if odd[0] in parts else f"remove or rename '{odd[0]}'",
            )


def _check_num_classes(branches: Mapping[str, Mapping[str, Any]], num_classes: Mapping[str, int]) -> None:
    for name in num_classes:
        why = f'it is no branch{did_you_mean(name, branches)}; the branches are: {", ".join(branches)}'
        check(name in branches, 'num_classes', name, why, 'give branches and tasks the same names')
    for name, branch in branches.items():
        head, known, where = branch['head'], num_classes.get(name), f'network.branches.{name}.head.num_classes'
        stated = head.num_classes if isinstance(head, ClassifyingHead) else None
        if isinstance(head, dict):
            stated = head.get('num_classes')
        why = f'the number of classes is that of the data set, {known}, which the head gets by itself'
        fix = f'remove num_classes={stated} from the head, or choose the data set that has {stated} classes'
        check(None in (stated, known) or stated == known, where, stated, why, fix)
        unknown = stated is known is None and isinstance(head, dict) and _needs_num_classes(head)
        why = f"no data set has classes for the field that the task '{name}' reads: their number is unknown"
        check(not unknown, where, stated, why, "give the model the data set's classes, or write num_classes=... here")


def _needs_num_classes(head: Mapping[str, Any]) -> bool:
    parameter = inspect.signature(resolve(head.get('type'))).parameters.get('num_classes')
    return parameter is not None and parameter.default is inspect.Parameter.empty
