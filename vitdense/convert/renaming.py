"""Renaming of tensors, and packing of separate query, key and value weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vitdense.convert.key_rules import Rule
from vitdense.storage.weights import State


def rename(name: str, rules: Sequence[Rule]) -> str:
    """Return `name` after all `rules`, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def pack_qkv(state: State, wanted: Mapping[str, Tensor]) -> State:
    """Join query, key and value weights to one tensor where the model has one; a missing key bias is zero."""
    ours = dict(state)
    for place, joined in _attentions(state):
        for kind in ('weight', 'bias'):
            parts = {part: ours.get(f'{place}{part}_proj.{kind}') for part in 'qkv'}
            if parts['q'] is None or parts['v'] is None:
                continue
            if kind == 'bias' and f'{place}q_bias' in wanted:
                ours |= {f'{place}{part}_bias': value for part, value in parts.items() if value is not None}
            else:
                ours[f'{place}{joined}{kind}'] = _joined(parts)
            for part in 'qkv':
                ours.pop(f'{place}{part}_proj.{kind}', None)
    for name in [name for name in ours if name.endswith('attn.q_bias') and name not in wanted]:
        place = name.removesuffix('q_bias')
        parts = {'q': ours.pop(name), 'k': None, 'v': ours.pop(f'{place}v_bias')}
        ours[f'{place}qkv.bias'] = _joined(parts)
    return ours


def _attentions(state: State) -> Iterator[tuple[str, str]]:
    """Yield the attentions whose queries stand alone, and what our joined tensor is called behind their name."""
    for name in [name for name in state if name.endswith('.q_proj.weight')]:
        place = name.removesuffix('q_proj.weight')
        yield place, 'in_proj_' if place.endswith('self_attn.') else 'qkv.'


def _joined(parts: Mapping[str, Tensor | None]) -> Tensor:
    key = torch.zeros_like(parts['q']) if parts['k'] is None else parts['k']
    return torch.cat([parts['q'], key, parts['v']])
