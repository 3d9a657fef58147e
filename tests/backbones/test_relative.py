"""The relative bias of attention: equal to plain loops and transformers' Beit, and independent of padding."""

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.test_windows import padded
from tests.heads.from_transformers import randomise, relative_error
from vitdense.backbones.attention_maps import attention_rows
from vitdense.backbones.relative import RelativeBias
from vitdense.backbones.tokens import Tokens
from vitdense.backbones.vit import ViT
from vitdense.backbones.windows import WindowPartition
from vitdense.errors import ConfigError
from vitdense.types import LayerRequest

SLIM = dict(depth=2, embed_dim=48, num_heads=3)
BOTH = [LayerRequest(0, False), LayerRequest(1, True)]


def make(name: str = 'vit_tiny_patch16_224', *, init_values: float | None = None, **arguments) -> ViT:
    torch.manual_seed(1)
    context = SLIM if init_values is None else SLIM | {'init_values': init_values}
    vit = ViT(name, img_size=64, timm_args=context, relative_bias=True, **arguments)
    randomise(vit)
    return vit.eval()


def test_equals_loops_over_queries_and_keys() -> None:
    bias = RelativeBias((3, 4), 2)
    nn.init.normal_(bias.table)
    wanted = torch.empty(2, 14, 14)  # two tokens before 3 x 4 patches
    wanted[:, :2, :2], wanted[:, :2, 2:] = bias.table.data[-1, :, None, None], bias.table.data[-3, :, None, None]
    wanted[:, 2:, :2] = bias.table.data[-2, :, None, None]
    for query in range(12):
        for key in range(12):
            down, right = query // 4 - key // 4, query % 4 - key % 4
            wanted[:, 2 + query, 2 + key] = bias.table.data[(down + 2) * 7 + right + 3]
    assert torch.equal(bias((3, 4), None, 2)[0], wanted)
    assert torch.equal(bias((3, 4), None, 0)[0], wanted[:, 2:, 2:])


NAMES = {  # of transformers' layers -> ours
    'attention.o_proj.': 'attn.proj.',
    'layernorm_before.': 'norm1.',
    'layernorm_after.': 'norm2.',
    'lambda_1': 'ls1.gamma',
    'lambda_2': 'ls2.gamma',
    'relative_position_bias.relative_position_bias_table': 'relative_bias.table',
}


def beit_state(layer: nn.Module) -> dict[str, Tensor]:
    """The weights of a layer of Beit under the names of timm; its keys have no bias."""
    state = layer.state_dict()
    parts = {name: state.pop(f'attention.{name}') for name in [f'{part}_proj.weight' for part in 'qkv']}
    ours = {'attn.qkv.weight': torch.cat([*parts.values()])}
    query, value = (state.pop(f'attention.{part}_proj.bias') for part in 'qv')
    ours['attn.qkv.bias'] = torch.cat([query, torch.zeros_like(query), value])
    for name, tensor in state.items():
        for theirs, known in NAMES.items():
            name = name.replace(theirs, known)
        ours[name] = tensor
    return ours


@pytest.mark.parametrize('grid', [(4, 4), (6, 3)])
def test_blocks_have_the_outputs_of_those_of_beit(grid: tuple[int, int]) -> None:
    transformers = pytest.importorskip('transformers')
    context = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, image_size=64)
    config = transformers.BeitConfig(**context, use_relative_position_bias=True, layer_norm_eps=1e-6)
    theirs = transformers.BeitModel(config, add_pooling_layer=False).eval()
    randomise(theirs)
    ours = make(init_values=1.0)
    x = torch.randn(2, 1 + grid[0] * grid[1], 48)
    with torch.no_grad():
        for block, layer in zip(ours.model.blocks, theirs.layers, strict=True):
            block.load_state_dict(beit_state(layer))
        got = ours.run(Tokens(x, grid)).x
        for layer in theirs.layers:
            x = layer(x, resolution=(16 * grid[0], 16 * grid[1]))
    assert relative_error(got, x) < 1e-4


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3', 'vit_base_patch16_siglip_224'])
def test_a_padded_batch_has_the_outputs_of_the_single_images(name: str) -> None:
    vit = make(name)
    sizes = [(4, 4), (3, 5), (1, 2)]
    imgs, valid = padded(sizes, 16)
    with torch.no_grad():
        batch = vit(imgs, valid, layers=BOTH)
        for row, (h, w) in enumerate(sizes):
            single = vit(imgs[row : row + 1, :, : h * 16, : w * 16], layers=BOTH)
            for ours, alone in zip(batch.layers, single.layers, strict=True):
                torch.testing.assert_close(ours[row, :, :h, :w], alone[0], atol=1e-4, rtol=1e-4)


def test_a_bias_of_zero_changes_nothing_and_is_off_unless_asked_for() -> None:
    vit, imgs = make(), torch.randn(1, 3, 64, 96)
    for block in vit.model.blocks:
        nn.init.zeros_(block.relative_bias.table)
    plain = ViT('vit_tiny_patch16_224', img_size=64, timm_args=SLIM).eval()
    state = {name: value for name, value in vit.state_dict().items() if 'relative_bias' not in name}
    plain.load_state_dict(state)  # strict: nothing else is there
    with torch.no_grad():
        ours, theirs = vit(imgs, layers=BOTH), plain(imgs, layers=BOTH)
    torch.testing.assert_close(ours.layers, theirs.layers, atol=1e-5, rtol=1e-5)


def test_recomputed_blocks_and_masks_over_tokens_keep_the_bias() -> None:
    imgs, gradients = torch.randn(2, 3, 64, 48), []
    for checkpointing in (False, True):
        vit = make(checkpointing=checkpointing).train()
        vit(imgs, layers=[(-1, True)]).layers[0].square().mean().backward()
        gradients.append(vit.model.blocks[0].relative_bias.table.grad)
    assert gradients[0].count_nonzero(1).all()  # each offset that there is has a say, resampled
    torch.testing.assert_close(*gradients)
    vit = vit.eval()
    tokens = vit.embed(imgs)
    everybody = torch.ones(1, 1, 13, 13, dtype=torch.bool)
    with torch.no_grad():
        wanted = vit.run(tokens).x
        for mask in (everybody, torch.zeros(1, 1, 13, 13)):
            torch.testing.assert_close(vit.run(tokens, attn_mask=mask).x, wanted)
        rows = attention_rows(vit, tokens, 1, [0, 5])[1]
        with torch.autocast('cpu', torch.bfloat16):
            assert vit.run(tokens).x.isfinite().all()
    assert rows.shape == (2, 3, 2, 13) and torch.allclose(rows.sum(-1), torch.ones(2, 3, 2))


def test_layers_are_counted_and_what_cannot_be_is_refused() -> None:
    vit = make()
    assert vit.layer_of('model.blocks.1.relative_bias.table') == 2
    with pytest.raises(ConfigError, match='ViT.relative_bias = True'):
        make(windows=WindowPartition(size=2, global_blocks=1))
    with pytest.raises(ConfigError, match='part of the patches'):
        vit.keep(vit.embed(torch.randn(1, 3, 64, 64)), torch.tensor([[0, 3]]))
