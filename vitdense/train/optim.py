"""Parameter groups with layer-wise learning rates, and the optimizer over them.

Layer-wise decay as in BEiT (arXiv 2106.08254, section 3.2 and its `LayerDecayValueAssigner`) and ViTDet: a parameter of
layer k of a ViT with `depth` blocks has `decay ** (depth + 1 - k)` times the rate, where layer 0 embeds, layer i + 1
is block i, and layer depth + 1 is the final norm. Everything outside the ViT has the full rate.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vitdense.arguments import check
from vitdense.errors import did_you_mean
from vitdense.protocols import LayeredBackbone
from vitdense.registry import build, resolve

NO_DECAY = (
    'norm', 'bias', 'layer_scale', 'pos_embed', 'cls_token', 'reg_token', 'register_tokens', 'mask_token',
    'log_variances',
)  # fmt: skip


class Group(NamedTuple):
    """One parameter group of the optimizer."""

    lr: float  # multiplier of the learning rate
    decayed: bool  # whether weight decay applies
    names: list[str]
    parameters: list[nn.Parameter]
    locations: list[str]  # where in the model: 'block 3', 'heads.sem', ...
    backbone: bool = False  # it is the ViT's own and follows the ViT's schedule; see `split_backbone_groups`


class LayerDecay:
    """Sort trainable parameters into as few groups as possible, one for each (learning rate, weight decay).

    `decay` is the layer-wise decay of the ViT; `backbone_lr` and `head_lr` multiply the rate of the ViT and of the
    rest. `lr_of` multiplies the rate of parameters whose name has a part of that name (`{'sampling_offsets': 0.1}`), or
    parts that follow each other (`{'decoder.norm': 0.7}`).

    With `full_blocks` that many last blocks and the final norm learn at the rate of the rest, the other blocks at
    `backbone_lr * decay ** k` where k blocks lie above them, and the embedding like the first block: EoMT's way of
    counting, in which 1 stands for a decay from the last block on.

    `no_decay` says what weight decay leaves alone: 'norm' is every parameter of a normalisation layer, 'bias' every
    bias, 'layer_scale' the per-channel gains of timm's blocks; any other word is a part of a dotted parameter name.
    `no_decay=()` decays every parameter; `backbone_no_decay` are the words for the ViT, where they differ. Frozen
    parameters are left out. Raises ConfigError for a word of `lr_of` that no parameter has.
    """

    def __init__(
        self,
        *,
        decay: float = 1.0,
        backbone_lr: float = 1.0,
        head_lr: float = 1.0,
        full_blocks: int = 0,
        no_decay: Sequence[str] = NO_DECAY,
        backbone_no_decay: Sequence[str] | None = None,
        lr_of: Mapping[str, float] | None = None,
    ) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f'decay is the factor from one layer to the one below, in (0, 1], got {decay}')
        self.decay = decay
        self.backbone_lr = backbone_lr
        self.head_lr = head_lr
        self.full_blocks = full_blocks
        self.no_decay = tuple(no_decay)
        self.backbone_no_decay = self.no_decay if backbone_no_decay is None else tuple(backbone_no_decay)
        self.lr_of = dict(lr_of or {})

    def groups(self, model: nn.Module) -> list[Group]:
        """Return the groups of `model`, in the order in which its parameters come; each parameter is in one group."""
        norms = _parameters_of(model, _is_norm)
        scales = _parameters_of(model, _is_layer_scale)
        vits = {name: module for name, module in model.named_modules() if isinstance(module, LayeredBackbone)}
        self._check_words([name for name, _ in model.named_parameters()])
        groups: dict[tuple[float, bool], Group] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            lr, location = self._rate(name, vits)
            words = self.no_decay if _inside(name, vits) is None else self.backbone_no_decay
            decayed = not _spared(name, words, in_norm=id(parameter) in norms, in_scale=id(parameter) in scales)
            group = groups.setdefault((round(lr, 12), decayed), Group(lr, decayed, [], [], []))
            group.names.append(name)
            group.parameters.append(parameter)
            if location not in group.locations:
                group.locations.append(location)
        return list(groups.values())

    def _rate(self, name: str, vits: Mapping[str, Any]) -> tuple[float, str]:
        """Return the learning-rate multiplier of a parameter and the place in the model that it belongs to."""
        rate, location = self.head_lr, '.'.join(name.split('.')[1:3]) or name
        prefix = _inside(name, vits)
        if prefix is not None:
            vit = vits[prefix]
            layer = vit.layer_of(name.removeprefix(f'{prefix}.') if prefix else name)
            rate = self._backbone_rate(layer, vit.depth)
            location = {0: 'embedding', vit.depth + 1: 'final norm'}.get(layer, f'block {layer - 1}')
        for word, factor in self.lr_of.items():
            if _has_parts(name, word):
                rate, location = rate * factor, f'{location} {word}'
        return rate, location

    def _backbone_rate(self, layer: int, depth: int) -> float:
        if not self.full_blocks:
            return self.backbone_lr * self.decay ** (depth + 1 - layer)
        if layer > depth - self.full_blocks:
            return self.head_lr
        return self.backbone_lr * self.decay ** (depth - max(layer, 1))

    def _check_words(self, names: Sequence[str]) -> None:
        for word in self.lr_of:
            near = did_you_mean(word, {part for name in names for part in name.split('.')})
            why = f'no parameter has this part, or these parts in a row, in its dotted name{near}'
            fix = 'check the spelling against model.named_parameters()'
            check(any(_has_parts(name, word) for name in names), 'optim_wrapper.groups.lr_of', word, why, fix)


def config_groups(section: Mapping[str, Any], model: nn.Module, *, split_backbone: bool) -> list[Group]:
    """Return the parameter groups of `model` by a config's `optim_wrapper`.

    With `split_backbone` no group holds parameters of a ViT and others.
    """
    groups = build(section['groups'] or {'type': 'vitdense.train.optim.LayerDecay'}).groups(model)
    return split_backbone_groups(groups, model) if split_backbone else groups


def split_backbone_groups(groups: Sequence[Group], model: nn.Module) -> list[Group]:
    """Return the groups with those cut in two that hold parameters of a ViT and others: the ViT's first, as `backbone`.

    Only needed where the ViT has a schedule of its own.
    """
    vits = [module for module in model.modules() if isinstance(module, LayeredBackbone)]
    inside = {id(parameter) for vit in vits for parameter in vit.parameters()}
    cut = []
    for group in groups:
        for backbone in (True, False):
            pairs = zip(group.names, group.parameters, strict=True)
            pairs = [(name, parameter) for name, parameter in pairs if (id(parameter) in inside) == backbone]
            if pairs:
                names, parameters = (list(column) for column in zip(*pairs, strict=True))
                cut.append(group._replace(names=names, parameters=parameters, backbone=backbone))
    return cut


def _inside(name: str, vits: Mapping[str, Any]) -> str | None:
    """Return the name of the ViT that a parameter belongs to; None where it belongs to none."""
    return next((prefix for prefix in vits if not prefix or name.startswith(f'{prefix}.')), None)


def _has_parts(name: str, word: str) -> bool:
    return f'.{word}.' in f'.{name}.'


def _spared(name: str, words: Sequence[str], *, in_norm: bool, in_scale: bool) -> bool:
    parts = name.split('.')
    kinds = {'norm': in_norm, 'bias': parts[-1].endswith('bias'), 'layer_scale': in_scale}
    return any(kinds.get(word, word in parts) for word in words)


def _is_norm(module: nn.Module) -> bool:
    # timm's and other norms are recognised by name; they do not share a base class
    return isinstance(module, nn.LayerNorm | nn.GroupNorm | _NormBase) or 'norm' in type(module).__name__.lower()


def _is_layer_scale(module: nn.Module) -> bool:
    return type(module).__name__.startswith('LayerScale')


def _parameters_of(model: nn.Module, wanted: Any) -> set[int]:
    """Return the ids of what wanted modules own themselves (for LayerScale also `gamma_1`, `gamma_2`)."""
    owned = {id(parameter) for module in model.modules() if wanted(module) for parameter in module.parameters(False)}
    if wanted is _is_layer_scale:
        owned |= {id(item) for name, item in model.named_parameters() if name.endswith(('.gamma_1', '.gamma_2'))}
    return owned


def build_optimizer(recipe: Mapping[str, Any], groups: Sequence[Group]) -> torch.optim.Optimizer:
    """Return the optimizer of `recipe` over `groups`; `lr` and `weight_decay` of the recipe are the full ones.

    The fused implementation is used where torch has one, unless the recipe says otherwise. Each group of the result
    keeps its full rate as `base_lr`. Raises ConfigError for an optimizer without `lr`, or with nothing to train.
    """
    recipe = dict(recipe)
    why = 'the optimizer has no learning rate, and a default rate is right for nothing'
    check('lr' in recipe, 'optim_wrapper.optimizer', recipe, why, 'add lr=... to the optimizer')
    why = 'the model has nothing to train: every parameter is frozen'
    check(bool(groups), 'optim_wrapper.groups', groups, why, 'unfreeze a part, or add a head')
    settings = [
        {
            'params': group.parameters,
            'lr': recipe['lr'] * group.lr,
            'base_lr': recipe['lr'] * group.lr,
            'backbone': group.backbone,
            **({} if group.decayed else {'weight_decay': 0.0}),
        }
        for group in groups
    ]
    kind = resolve(recipe['type'])
    if 'fused' in inspect.signature(kind).parameters and 'foreach' not in recipe:
        kinds = {parameter.device.type for group in groups for parameter in group.parameters}
        recipe.setdefault('fused', kinds <= {'cpu', 'cuda'})
    return build(recipe, params=settings)


def group_rows(groups: Sequence[Group], lr: float, weight_decay: float) -> list[tuple[str, ...]]:
    """Return `(part, lr, parameters with decay, without decay)` for what is trained, one row for each rate."""
    rows: dict[float, dict[str, Any]] = {}
    for group in groups:
        row = rows.setdefault(round(group.lr, 12), {'locations': [], True: 0, False: 0})
        row['locations'] += [location for location in group.locations if location not in row['locations']]
        row[group.decayed] += sum(parameter.numel() for parameter in group.parameters)
    return [
        (
            _shorten(row['locations']),
            f'{lr * rate:.3g}',
            _count(row[True] if weight_decay else 0),
            _count(row[False] + (0 if weight_decay else row[True])),
        )
        for rate, row in rows.items()
    ]


def _shorten(locations: Sequence[str]) -> str:
    """Return 'block 0, block 1, block 2, heads.sem' as 'block 0-2, heads.sem'."""
    blocks = sorted(
        int(location.split()[1])
        for location in locations
        if location.startswith('block ') and len(location.split()) == 2
    )
    others = [location for location in locations if not (location.startswith('block ') and len(location.split()) == 2)]
    if not blocks:
        return ', '.join(others)
    whole = f'block {blocks[0]}' if len(blocks) == 1 else f'blocks {blocks[0]}-{blocks[-1]}'
    ahead = [location for location in others if location == 'embedding']
    return ', '.join([*ahead, whole, *(location for location in others if location != 'embedding')])


def _count(number: int) -> str:
    for unit, size in (('M', 1e6), ('k', 1e3)):
        if number >= size:
            return f'{number / size:.2f} {unit}'
    return str(number)
