"""ViTs of all families against transformers: maps of layers and gradients, random weights copied over."""

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.heads.from_transformers import gradient_error, gradients_of, relative_error
from vitdense.backbones.vit import ViT
from vitdense.types import LayerRequest

transformers = pytest.importorskip('transformers')

CONTEXT = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=64)
CONTEXT |= dict(patch_size=16)
OURS = dict(embed_dim=48, depth=2, num_heads=3)
RULES = [  # theirs -> ours
    (r'^embeddings\.(cls_token)', r'\1'),
    (r'^embeddings\.register_tokens', 'reg_token'),
    (r'^embeddings\.position_embeddings', 'pos_embed'),
    (r'^embeddings\.patch_embeddings\.(projection\.)?', 'patch_embed.proj.'),
    (r'^(encoder\.layer|model\.layer|layers)\.', 'blocks.'),
    (r'layernorm_before', 'norm1'),
    (r'layernorm_after', 'norm2'),
    (r'^layernorm', 'norm'),
    (r'attention\.o_proj', 'attn.proj'),
    (r'attention\.', 'attn.'),
    (r'layer_scale(\d)\.lambda1', r'ls\1.gamma'),
    (r'lambda_(\d)', r'ls\1.gamma'),
    (r'mlp\.up_proj', 'mlp.fc1'),
    (r'mlp\.down_proj', 'mlp.fc2'),
    (r'relative_position_bias\.relative_position_bias_table', 'relative_bias.table'),
]


def our_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights or gradients of transformers under the names of timm, in the layouts of `wanted`."""
    ours = {}
    for name, value in state.items():
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        if name not in wanted and '.gamma' in name:  # DINOv3's blocks in timm
            name = re.sub(r'ls(\d)\.gamma', r'gamma_\1', name)
        ours[name] = value
    for location in [name.removesuffix('q_proj.weight') for name in ours if name.endswith('q_proj.weight')]:
        ours[f'{location}qkv.weight'] = torch.cat([ours.pop(f'{location}{part}_proj.weight') for part in 'qkv'])
        biases = {part: ours.pop(f'{location}{part}_proj.bias', None) for part in 'qkv'}
        if f'{location}q_bias' in wanted:
            ours |= {f'{location}{part}_bias': biases[part] for part in 'qv'}
        else:
            keys = torch.zeros_like(biases['q']) if biases['k'] is None else biases['k']
            ours[f'{location}qkv.bias'] = torch.cat([biases['q'], keys, biases['v']])
    if 'pos_embed' in ours and ours['pos_embed'].shape[1] > wanted['pos_embed'].shape[1]:
        ours['pos_embed'] = ours['pos_embed'][:, 1:]  # that of the class token is part of it, see `pair`
    return {name: value for name, value in ours.items() if 'mask_token' not in name}


def pair(kind: str) -> tuple[nn.Module, ViT]:
    if kind == 'dinov2':
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**CONTEXT))
        ours = ViT('vit_small_patch14_dinov2', patch_size=16, img_size=64, timm_args=OURS)
    elif kind == 'dinov2 with registers':
        theirs = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**CONTEXT))
        ours = ViT('vit_small_patch14_reg4_dinov2', patch_size=16, img_size=64, timm_args=OURS)
    elif kind == 'dinov3':
        config = transformers.DINOv3ViTConfig(**CONTEXT, num_register_tokens=4, layer_norm_eps=1e-5)
        theirs = transformers.DINOv3ViTModel(config)
        ours = ViT('vit_small_patch16_dinov3_qkvb', img_size=64, timm_args=OURS)
    elif kind == 'beit':
        config = transformers.BeitConfig(**CONTEXT, use_relative_position_bias=True, layer_norm_eps=1e-6)
        theirs = transformers.BeitModel(config, add_pooling_layer=False)
        timm_args = OURS | dict(init_values=1.0, pos_embed='none', final_norm=False)
        ours = ViT('vit_tiny_patch16_224', img_size=64, timm_args=timm_args, relative_bias=True)
    else:
        theirs = transformers.ViTModel(transformers.ViTConfig(**CONTEXT, layer_norm_eps=1e-6), add_pooling_layer=False)
        ours = ViT('vit_tiny_patch16_224', img_size=64, timm_args=OURS)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.uniform_(0.5, 1.5) if 'norm' in name or 'lambda' in name else parameter.normal_(std=0.15)
        if kind == 'dinov2 with registers':  # timm adds the position of the class token to the token
            theirs.embeddings.position_embeddings[:, 0] = 0
    ours.model.load_state_dict(our_names(theirs.state_dict(), ours.model.state_dict()), strict=True)
    return theirs.eval(), ours.eval()


def maps_of(theirs: nn.Module, imgs: Tensor, kind: str) -> list[Tensor]:
    """Return the patches of both layers as maps, the last one also behind the final norm where there is one."""
    states = list(theirs(imgs, output_hidden_states=True).hidden_states[-2:])
    norm = getattr(theirs, 'layernorm', getattr(theirs, 'norm', None))
    if kind != 'beit':
        states.append(norm(states[-1]))
    grid = (imgs.shape[-2] // 16, imgs.shape[-1] // 16)
    return [x[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid) for x in states]


@pytest.mark.parametrize(
    ('kind', 'size'),
    [
        ('dinov2', (64, 64)),
        ('dinov2 with registers', (64, 64)),
        ('dinov3', (64, 64)),
        ('dinov3', (32, 80)),
        ('beit', (64, 64)),
        ('vit', (64, 64)),
    ],
)
def test_layers_and_gradients_equal_transformers(kind: str, size: tuple[int, int]) -> None:
    theirs, ours = pair(kind)
    imgs, grad_output = (
        torch.randn(2, 3, *size, requires_grad=True),
        torch.randn(3, 2, 48, size[0] // 16, size[1] // 16),
    )
    requests = [LayerRequest(0, False), LayerRequest(1, False), *([LayerRequest(1, True)] if kind != 'beit' else [])]
    wanted, got = maps_of(theirs, imgs, kind), ours(imgs, layers=requests).layers
    assert all(relative_error(*maps) < 1e-5 for maps in zip(got, wanted, strict=True))

    image_gradients = []
    for maps in (got, wanted):
        total = sum((x * weights).sum() for x, weights in zip(maps, grad_output, strict=False))
        image_gradients.append(torch.autograd.grad(total, imgs, retain_graph=True)[0])
        total.backward()
    assert relative_error(*image_gradients) < 1e-4
    expected = our_names(gradients_of(theirs), ours.model.state_dict())
    assert gradient_error(gradients_of(ours.model), expected) < 1e-4
