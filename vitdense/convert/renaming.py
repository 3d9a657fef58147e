"""Packing of separate query, key and value weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from vitdense.pretrained.foreign_names import concatenate_qkv
from vitdense.storage.weights import State


def pack_qkv(state: State, wanted: Mapping[str, Tensor]) -> State:
    """Join query, key and value weights to one tensor where the model has one; a missing key bias is zero."""
    ours = dict(state)
    for prefix, joined in _attentions(state):
        for kind in ('weight', 'bias'):
            parts = {part: ours.get(f'{prefix}{part}_proj.{kind}') for part in 'qkv'}
            if parts['q'] is None or parts['v'] is None:
                continue
            if kind == 'bias' and f'{prefix}q_bias' in wanted:
                ours |= {f'{prefix}{part}_bias': value for part, value in parts.items() if value is not None}
            else:
                ours[f'{prefix}{joined}{kind}'] = concatenate_qkv(*parts.values())
            for part in 'qkv':
                ours.pop(f'{prefix}{part}_proj.{kind}', None)
    for name in [name for name in ours if name.endswith('attn.q_bias') and name not in wanted]:
        prefix = name.removesuffix('q_bias')
        parts = {'q': ours.pop(name), 'k': None, 'v': ours.pop(f'{prefix}v_bias')}
        ours[f'{prefix}qkv.bias'] = concatenate_qkv(*parts.values())
    return ours


def _attentions(state: State) -> Iterator[tuple[str, str]]:
    """Yield the prefixes of attentions with separate queries, and the suffix of their packed tensor."""
    for name in [name for name in state if name.endswith('.q_proj.weight')]:
        prefix = name.removesuffix('q_proj.weight')
        yield prefix, 'in_proj_' if prefix.endswith('self_attn.') else 'qkv.'
