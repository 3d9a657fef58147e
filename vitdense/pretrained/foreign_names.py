"""Translation of backbone weights from the names of transformers, JAX and chunked blocks to timm's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vitdense.errors import CheckpointError

State = dict[str, Tensor]
Rule = tuple[str, str | Callable[[re.Match], str]]

_KERNEL = re.compile(r'(|.*\.)embeddings\.patch_embeddings?\.(?:projection\.)?weight')  # of transformers
_JAX_KERNEL = re.compile(r'(opt/target/|params/(?:img/)?|)embedding/kernel')
_CHUNK = re.compile(r'(|.*\.)blocks\.(\d+)\.(\d+)\.(.*)')
_BLOCK = r'\b(blocks\.\d+)\.'
BLOCK_RULES: tuple[Rule, ...] = (  # of a transformer block of transformers, behind any prefix
    (_BLOCK + r'(?:attention\.attention|attention|self_attn)\.(q|k|v)(?:uery|ey|alue|_proj)\.', r'\1.attn.\2_proj.'),
    (_BLOCK + r'(?:attention|self_attn)\.(?:output\.dense|output|o_proj|out_proj)\.', r'\1.attn.proj.'),
    (_BLOCK + r'(?:layernorm_before|layer_norm1)\.', r'\1.norm1.'),
    (_BLOCK + r'(?:layernorm_after|layer_norm2)\.', r'\1.norm2.'),
    (_BLOCK + r'intermediate\.dense\.', r'\1.mlp.fc1.'),
    (_BLOCK + r'output\.dense\.', r'\1.mlp.fc2.'),
    (_BLOCK + r'layer_scale(\d)\.lambda1$', r'\1.ls\2.gamma'),
)
_RULES: tuple[Rule, ...] = (  # of transformers, inside the model; applied one after another
    (r'^embeddings\.patch_embeddings?\.(?:projection\.)?', 'patch_embed.proj.'),
    (r'^embeddings\.(?:position_embeddings|position_embedding\.weight)$', 'pos_embed'),
    (r'^embeddings\.(?:cls_token|class_embedding)$', 'cls_token'),
    (r'^embeddings\.distillation_token$', 'dist_token'),
    (r'^embeddings\.', ''),  # mask_token, register_tokens
    (r'^pre_(?:layrnorm|layernorm)\.', 'norm_pre.'),
    (r'^(?:layernorm|post_layernorm)\.', 'norm.'),
    (r'^(?:(?:encoder|model)\.)?layers?\.(\d+)\.', r'blocks.\1.'),
    *BLOCK_RULES,
    (_BLOCK + r'mlp\.weights_in\.', r'\1.mlp.w12.'),
    (_BLOCK + r'mlp\.weights_out\.', r'\1.mlp.w3.'),
)
_CLASSIFIERS = {'classifier.': 'head.', 'cls_classifier.': 'head.', 'distillation_classifier.': 'head_dist.'}
_JAX_RULES: tuple[Rule, ...] = (
    (r'^embedding/', 'patch_embed.proj/'),
    (r'^(?:Transformer/posembed_input/)?pos_embedding$', 'pos_embed'),
    (r'^cls$', 'cls_token'),
    (r'^Transformer/encoder_norm/', 'norm/'),
    (r'^Transformer/encoderblock_(\d+)/', r'blocks.\1.'),
    (r'^(blocks\.\d+\.)LayerNorm_0/', r'\1norm1/'),
    (r'^(blocks\.\d+\.)LayerNorm_[12]/', r'\1norm2/'),
    (r'^(blocks\.\d+\.)MultiHeadDotProductAttention_[01]/(q|k|v)(?:uery|ey|alue)/', r'\1attn.\2_proj/'),
    (r'^(blocks\.\d+\.)MultiHeadDotProductAttention_[01]/out/', r'\1attn.proj/'),
    (r'^(blocks\.\d+\.)MlpBlock_[03]/Dense_0/', r'\1mlp.fc1/'),
    (r'^(blocks\.\d+\.)MlpBlock_[03]/Dense_1/', r'\1mlp.fc2/'),
    (r'^MAPHead_0/.*', 'attn_pool.latent/probe'),  # a backbone needs no pooling
    (r'/(?:scale|kernel)$', '.weight'),
    (r'/bias$', '.bias'),
)


def translated(state: Mapping[str, Tensor], *, where: str) -> tuple[State, str]:
    """Return a backbone's weights under names that timm reads, and the kind of their old names ('' if unchanged).

    Prefixes of a model (`vit.`, `teacher.backbone.`) are kept. Raises CheckpointError for BEiT,
    which is no plain ViT.
    """
    jax = next((matched for name in state if (matched := _JAX_KERNEL.fullmatch(name))), None)
    if jax:
        return _from_jax(state, jax[1]), 'names of JAX'
    prefixes = [matched[1] for name in state if (matched := _KERNEL.fullmatch(name))]
    if prefixes:
        result: State = {}
        for prefix in prefixes:
            result |= _from_transformers(state, prefix, where)
        siglip = f'{prefixes[0]}embeddings.patch_embedding.bias' in state
        return result, 'names of transformers' + ', SigLIP' * siglip
    if any(_CHUNK.fullmatch(name) for name in state):
        return dict(_unchunked(state)), 'chunked blocks'
    return dict(state), ''


def rename(name: str, rules: Sequence[Rule]) -> str:
    """Return `name` after all `rules`, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _from_transformers(state: Mapping[str, Tensor], prefix: str, where: str) -> State:
    """Return the model behind `prefix` under the names of its original release, which timm reads."""
    if any('relative_position_bias' in name or name.endswith('.lambda_1') for name in state):
        raise CheckpointError(
            'these are weights of BEiT (names of transformers)',
            where=where,
            why='its blocks add a bias for every offset between patches, which a plain ViT does not have',
            fix='take a ViT with absolute or rotary positions, such as vit_base_patch16_224.mae',
        )
    own = {rename(name.removeprefix(prefix), _RULES): state[name] for name in state if name.startswith(prefix)}
    own.pop('position_ids', None)
    for theirs, ours in _CLASSIFIERS.items():
        own |= {ours + name.removeprefix(theirs): state[name] for name in state if name.startswith(theirs)}
    own = {name: value for name, value in own.items() if not name.startswith(tuple(_CLASSIFIERS))}
    rotary = 'pos_embed' not in own
    own = _joined(_gated(own, rotary=rotary))
    if 'cls_token' in own:
        own['cls_token'] = own['cls_token'].reshape(1, 1, -1)
    if not rotary and own['pos_embed'].ndim == 2:
        own['pos_embed'] = own['pos_embed'][None]
    if 'register_tokens' in own and rotary:
        own['storage_tokens'] = own.pop('register_tokens')  # as DINOv3 calls them
    elif 'register_tokens' in own or 'blocks.0.mlp.w12.weight' in own:
        own.setdefault('mask_token', torch.zeros(1))  # by which timm's filter recognises DINOv2
    return {prefix + name: value for name, value in own.items()}


def _gated(state: State, *, rotary: bool) -> State:
    """Rename the layers of an MLP with gates (SwiGLU), and of one that has its names without gates."""
    gates = {name for name in state if '.mlp.gate_proj.' in name}
    names = {'gate': 'w1', 'up': 'w2', 'down': 'w3'} if gates else {'up': 'fc1', 'down': 'fc2'}
    result = {}
    for name, value in state.items():
        part = next((part for part in names if f'.mlp.{part}_proj.' in name), None)
        result[name.replace(f'.mlp.{part}_proj.', f'.mlp.{names[part]}.') if part else name] = value
    if not gates or rotary:
        return result
    for name in [name for name in result if '.mlp.w1.' in name]:  # DINOv2 keeps gate and value in one layer
        packed = torch.cat([result.pop(name), result.pop(name.replace('.w1.', '.w2.'))])
        result[name.replace('.w1.', '.w12.')] = packed
    return result


def _joined(state: State) -> State:
    """Join queries, keys and values (`attn.q_proj.*`, ...) to one tensor; a missing key bias is zero."""
    result = dict(state)
    for name in [name for name in state if '.attn.q_proj.' in name]:
        parts = [result.pop(name.replace('.q_proj.', f'.{part}_proj.'), None) for part in 'qkv']
        result[name.replace('.q_proj.', '.qkv.')] = concatenate_qkv(*parts)
    return result


def concatenate_qkv(query: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
    """Return the packed weight or bias of queries, keys and values; a missing key bias is zero."""
    return torch.cat([query, torch.zeros_like(query) if key is None else key, value])


def _unchunked(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights with blocks in one row: training code of DINOv2 and DINOv3 cuts it into chunks."""
    parts = {name: matched for name in state if (matched := _CHUNK.fullmatch(name))}
    rows: dict[str, list[tuple[int, int]]] = {}
    for matched in parts.values():
        rows.setdefault(matched[1], []).append((int(matched[2]), int(matched[3])))
    order = {prefix: {pair: row for row, pair in enumerate(sorted(set(pairs)))} for prefix, pairs in rows.items()}
    for name, value in state.items():
        matched = parts.get(name)
        if matched:
            name = f'{matched[1]}blocks.{order[matched[1]][int(matched[2]), int(matched[3])]}.{matched[4]}'
        yield name, value


def _from_jax(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return weights of google's AugReg and Big Vision under timm's names, as timm's own loader arranges them."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    stacked = 'Transformer/encoderblock/'  # all blocks in one array
    for name in [name for name in own if name.startswith(stacked)]:
        for row, value in enumerate(own.pop(name)):
            own[name.replace(stacked, f'Transformer/encoderblock_{row}/')] = value
    return _joined({rename(name, _JAX_RULES): _arranged(name, value) for name, value in own.items()})


def _arranged(name: str, value: Tensor) -> Tensor:
    """Return an array of JAX in the layout of PyTorch: inputs behind outputs."""
    if name == 'cls':
        return value.reshape(1, 1, -1)
    if name.endswith('pos_embedding'):
        return value.reshape(1, -1, value.shape[-1])
    if name == 'embedding/kernel':  # (P, P, 3, C)
        return value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value
    if name.endswith('out/kernel') and value.ndim == 3:  # (heads, D, C)
        return value.flatten(0, 1).T.contiguous()
    if name.endswith('kernel'):  # (C, heads, D) of queries, keys and values, (inputs, outputs) of others
        return value.flatten(1).T.contiguous() if value.ndim > 1 else value
    return value.reshape(-1) if name.endswith(('query/bias', 'key/bias', 'value/bias')) else value
