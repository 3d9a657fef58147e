"""Backbone files under foreign names: maps equal those of the model that wrote the file."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitdense.backbones.vit import ViT
from vitdense.errors import CheckpointError

transformers = pytest.importorskip('transformers')
transformers.logging.set_verbosity_error()

SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
SLIM = dict(embed_dim=64, depth=2, num_heads=2)
LS = dict(SLIM, init_values=1.0)
# of transformers: name of config and model, its arguments; of ours: name and arguments; number of prefix tokens
MODELS = {
    'dinov2': (
        *('Dinov2', dict(SMALL, patch_size=14, image_size=56, mlp_ratio=4)),
        *('vit_small_patch14_dinov2', LS, 1),
    ),
    'dinov2 giant': (
        *('Dinov2', dict(SMALL, patch_size=14, image_size=56, mlp_ratio=4, use_swiglu_ffn=True)),
        *('vit_giant_patch14_dinov2', dict(LS, mlp_ratio=5.5), 1),
    ),
    'dinov2 with registers': (
        *('Dinov2WithRegisters', dict(SMALL, patch_size=14, image_size=56, mlp_ratio=4)),
        *('vit_small_patch14_reg4_dinov2', LS, 5),
    ),
    'dinov3': (
        *('DINOv3ViT', dict(SMALL, patch_size=16, num_register_tokens=4, key_bias=False)),
        *('vit_small_patch16_dinov3_qkvb', LS, 5),
    ),
    'dinov3 plus': (
        *('DINOv3ViT', dict(SMALL, patch_size=16, num_register_tokens=4, use_gated_mlp=True, hidden_act='silu')),
        *('vit_small_plus_patch16_dinov3_qkvb', dict(LS, mlp_ratio=4), 5),
    ),
    'vit': ('ViT', dict(SMALL, patch_size=16, image_size=64), 'vit_tiny_patch16_224', SLIM, 1),
    'deit': ('DeiT', dict(SMALL, patch_size=16, image_size=64), 'deit_tiny_distilled_patch16_224', SLIM, 2),
    'siglip': (
        *('SiglipVision', dict(SMALL, patch_size=16, image_size=64)),
        *('vit_base_patch16_siglip_224', dict(SLIM, act_layer='gelu_tanh'), 0),
    ),
    'clip': (
        *('CLIPVision', dict(SMALL, patch_size=16, image_size=64)),
        *('vit_base_patch16_clip_quickgelu_224', SLIM, 1),
    ),
}


def peer(kind: str, **arguments: object) -> nn.Module:
    """Return a model of transformers with random numbers everywhere, biases and norms too."""
    torch.manual_seed(0)
    model = getattr(transformers, f'{kind}Model')(getattr(transformers, f'{kind}Config')(**arguments)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def theirs(model: nn.Module, x: torch.Tensor, prefix: int) -> torch.Tensor:
    with torch.no_grad():
        tokens = model(x).last_hidden_state
        if hasattr(model, 'post_layernorm') and type(model).__name__.startswith('CLIP'):
            tokens = model.post_layernorm(tokens)  # theirs norms the class token alone
    return tokens[:, prefix:]


def ours(vit: ViT, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vit.eval()(x, layers=[(-1, True)]).layers[0].flatten(2).transpose(1, 2)


@pytest.mark.parametrize('case', MODELS)
@pytest.mark.parametrize('spelled', ['saved', 'own'])  # a file of the hub, and names inside transformers 5
def test_maps_equal_those_of_transformers(tmp_path: Path, case: str, spelled: str) -> None:
    kind, arguments, name, timm_args, prefix = MODELS[case]
    model = peer(kind, **arguments)
    if spelled == 'saved':
        model.save_pretrained(tmp_path)
    else:
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / 'model.safetensors'
        )
    vit = ViT(name, pretrained=tmp_path / 'model.safetensors', timm_args=timm_args)
    side = 4 * arguments['patch_size']
    x = torch.randn(2, 3, side, side)
    torch.testing.assert_close(ours(vit, x), theirs(model, x, prefix), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kind', ['ViTForImageClassification', 'ViTMAEForPreTraining'])
def test_what_stands_around_the_backbone_of_transformers_is_left_out(tmp_path: Path, kind: str) -> None:
    config = dict(SMALL, patch_size=16, image_size=64, layer_norm_eps=1e-6)
    decoder = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    config |= dict(decoder, decoder_intermediate_size=16) if 'MAE' in kind else {}
    model = getattr(transformers, kind)(getattr(transformers, kind.partition('For')[0] + 'Config')(**config)).eval()
    model.save_pretrained(tmp_path)
    vit = ViT('vit_tiny_patch16_224', pretrained=tmp_path / 'model.safetensors', timm_args=SLIM)
    x = torch.randn(1, 3, 64, 64)
    own = model.vit
    if 'MAE' in kind:
        own.config.mask_ratio = 0.0  # and then the order is that of the noise
        with torch.no_grad():
            expected = own(x, noise=torch.arange(16.0)[None]).last_hidden_state[:, 1:]
    else:
        expected = theirs(own, x, 1)
        assert torch.equal(vit.read_classifier().weights['classifier.weight'], model.classifier.weight)
    torch.testing.assert_close(ours(vit, x), expected, atol=1e-5, rtol=1e-5)


def test_beit_is_named_for_what_it_is(tmp_path: Path) -> None:
    config = transformers.BeitConfig(**SMALL, patch_size=16, image_size=64, use_relative_position_bias=True)
    transformers.BeitModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match='weights of BEiT'):
        ViT('vit_tiny_patch16_224', pretrained=tmp_path / 'model.safetensors', timm_args=SLIM)


def test_another_architecture_is_refused_with_the_share_that_matched(tmp_path: Path) -> None:
    peer('Dinov2', **dict(SMALL, patch_size=16, image_size=64)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match='parameters matched') as caught:
        ViT('vit_tiny_patch16_224', pretrained=tmp_path / 'model.safetensors', timm_args=SLIM)
    assert 'names of transformers' in caught.value.where and 'ls1.gamma' in caught.value.why


@pytest.mark.parametrize('inner', ['global', 'local'])  # DINOv2 numbers blocks through, other code anew in each chunk
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_chunked_blocks(tmp_path: Path, inner: str, prefix: str) -> None:
    torch.manual_seed(0)
    source = timm.create_model('vit_tiny_patch16_224', num_classes=0, **dict(SLIM, depth=12))
    chunked = {}
    for name, value in source.state_dict().items():
        if name.startswith('blocks.'):
            _, row, rest = name.split('.', 2)
            name = f'blocks.{int(row) // 4}.{int(row) if inner == "global" else int(row) % 4}.{rest}'
        chunked[prefix + name] = value
    torch.save({'teacher': chunked}, tmp_path / 'teacher_checkpoint.pth')
    vit = ViT('vit_tiny_patch16_224', pretrained=tmp_path / 'teacher_checkpoint.pth', timm_args=dict(SLIM, depth=12))
    assert all(torch.equal(vit.model.state_dict()[name], value) for name, value in source.state_dict().items())


def jax_arrays(model: VisionTransformer, heads: int) -> dict[str, np.ndarray]:
    """Return random arrays under the names of AugReg, of the shapes of `model`."""
    generator = np.random.default_rng(0)
    width, (patch, _) = model.embed_dim, model.patch_embed.patch_size
    shapes: dict[str, tuple[int, ...]] = {'cls': (1, 1, width), 'embedding/kernel': (patch, patch, 3, width)}
    shapes |= {'embedding/bias': (width,), 'Transformer/posembed_input/pos_embedding': model.pos_embed.shape}
    shapes |= {'head/kernel': (width, 5), 'head/bias': (5,), 'pre_logits/kernel': (width, width)}
    norms = ['Transformer/encoder_norm']
    for row in range(len(model.blocks)):
        block = f'Transformer/encoderblock_{row}'
        norms += [f'{block}/LayerNorm_0', f'{block}/LayerNorm_2']
        attention, head = f'{block}/MultiHeadDotProductAttention_1', width // heads
        for part in ('query', 'key', 'value'):
            shapes |= {f'{attention}/{part}/kernel': (width, heads, head), f'{attention}/{part}/bias': (heads, head)}
        shapes |= {f'{attention}/out/kernel': (heads, head, width), f'{attention}/out/bias': (width,)}
        for part, (inputs, outputs) in enumerate(((width, 4 * width), (4 * width, width))):
            dense = f'{block}/MlpBlock_3/Dense_{part}'
            shapes |= {f'{dense}/kernel': (inputs, outputs), f'{dense}/bias': (outputs,)}
    shapes |= {f'{norm}/{part}': (width,) for norm in norms for part in ('scale', 'bias')}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize('prefix', ['', 'opt/target/'])
def test_an_npz_of_jax_is_read_as_timm_reads_it(tmp_path: Path, prefix: str) -> None:
    peer_model = timm.create_model('vit_tiny_patch16_224', num_classes=0, **SLIM)
    arrays = jax_arrays(peer_model, heads=2)
    np.savez(tmp_path / 'S_16.npz', **{prefix + name: value for name, value in arrays.items()})
    peer_model.load_pretrained(tmp_path / 'S_16.npz')
    vit = ViT('vit_tiny_patch16_224', pretrained=tmp_path / 'S_16.npz', timm_args=SLIM)
    assert all(torch.equal(vit.model.state_dict()[name], value) for name, value in peer_model.state_dict().items())
    arrays.pop('Transformer/encoderblock_1/LayerNorm_0/scale')
    np.savez(tmp_path / 'S_16.npz', **arrays)
    with pytest.raises(CheckpointError, match=r'missing in the file: blocks\.1\.norm1\.weight'):
        ViT('vit_tiny_patch16_224', pretrained=tmp_path / 'S_16.npz', timm_args=SLIM)


def test_biases_of_dinov3_are_never_dropped_silently(tmp_path: Path) -> None:
    config = dict(SMALL, patch_size=16, num_register_tokens=4)
    peer('DINOv3ViT', **config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match='have biases') as caught:
        ViT('vit_small_patch16_dinov3', pretrained=tmp_path / 'model.safetensors', timm_args=LS)
    assert 'vit_small_patch16_dinov3_qkvb' in caught.value.fix
    state = load_file(tmp_path / 'model.safetensors')
    state |= {name: 0 * value for name, value in state.items() if name.endswith(('q_proj.bias', 'v_proj.bias'))}
    save_file(state, tmp_path / 'zero.safetensors')
    with_biases = ViT('vit_small_patch16_dinov3_qkvb', pretrained=tmp_path / 'zero.safetensors', timm_args=LS)
    without = ViT('vit_small_patch16_dinov3', pretrained=tmp_path / 'zero.safetensors', timm_args=LS)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(without, x), ours(with_biases, x), atol=1e-5, rtol=1e-5)
