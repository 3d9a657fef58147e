"""Published weights that are differences from base weights: detection and addition of the base."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitdense.convert.key_rules import DINOV3, CheckpointFamily
from vitdense.convert.renaming import pack_qkv
from vitdense.errors import CheckpointError, ConfigError
from vitdense.pretrained.creation import DISPENSABLE, timm_names
from vitdense.pretrained.foreign_names import rename
from vitdense.storage.weights import State, load_weights

BACKBONE = 'backbone.model.'
_NORM = re.compile(r'^(?!.*upscale).*\b(layer)?norm\d?\.weight$')  # of the backbone, in any naming
NEAR_ZERO = 0.1  # mean weight of norms: they start at 1 and stay positive, differences of them scatter around 0


def check_base(state: Mapping[str, Tensor], published: CheckpointFamily, *, where: str, has_base: bool) -> None:
    """Check that base weights are present exactly for differences.

    Raises CheckpointError for differences without base weights, and for complete weights with some; ConfigError for
    base weights of a family that is published complete.
    """
    if published.base is None:
        if has_base:
            raise ConfigError(
                f'{published.name} needs no base weights',
                where='--base',
                why='its checkpoints are complete: added to a base they would be another model',
                fix='leave --base out',
            )
        return
    norms = [value for name, value in state.items() if _NORM.match(name)]
    if not norms:
        return  # the comparison of names reports it
    mean = torch.cat([value.flatten().double() for value in norms]).mean().item()
    if mean < NEAR_ZERO and not has_base:
        raise CheckpointError(
            'the file holds differences from base weights, not the weights themselves',
            where=where,
            why=f'the norm weights of its backbone are near zero (mean {mean:.4f}); the authors publish what their '
            'training\nadded to the pretrained backbone',
            fix=f'add --base FILE, with the backbone that they started from: {published.base}',
        )
    if mean >= NEAR_ZERO and has_base:
        raise CheckpointError(
            'the file holds complete weights, to which no base must be added',
            where=where,
            why=f'the norm weights of its backbone have a mean of {mean:.2f}; those of differences are near zero',
            fix='leave --base out',
        )


def base_state(network: nn.Module, base: Mapping[str, Tensor], published: CheckpointFamily, *, where: str) -> State:
    """Return the base weights for the backbone of `network`, in the names of the network.

    `base` has the names of timm, of the authors of DINOv3, or of transformers. Raises CheckpointError where it does
    not fill the backbone completely.
    """
    model = copy.deepcopy(network.backbone.model)
    wanted = model.state_dict()

    def convert(trial: State) -> State:
        return timm_names(pack_qkv({rename(name, DINOV3): value for name, value in trial.items()}, wanted), model=model)

    try:
        load_weights(model, base, where=f'{where}, base weights', convert=convert, ignore=DISPENSABLE)
    except CheckpointError as error:
        fix = f'give {published.base}'
        raise CheckpointError(error.message, where=error.where, why=error.why, fix=fix) from None
    return {f'{BACKBONE}{name}': value for name, value in model.state_dict().items()}


def add_base(ours: State, base: Mapping[str, Tensor]) -> State:
    """Return `ours` with `base` added to the backbone; the heads are published complete.

    The share of masked queries is a buffer that starts at 1 where parameters start at 0: as a difference it is
    negative.
    """
    added = dict(ours)
    for name, value in base.items():
        if name in ours and ours[name].shape == value.shape:
            added[name] = value + ours[name]
    shares = added.get('attn_mask_probs')
    if shares is not None and bool((shares < 0).any()):
        added['attn_mask_probs'] = shares + 1
    return added
