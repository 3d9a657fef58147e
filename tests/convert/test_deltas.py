"""EoMT on DINOv3 is published as differences: with its base it equals transformers', without it is refused."""

import json
import re

import pytest
import torch
from torch import Tensor, nn

from tests.convert.test_import_weights import CONTEXT
from tests.heads.from_transformers import randomise, relative_error
from tools.import_weights import main
from vitdense.backbones.vit import ViT
from vitdense.convert.deltas import base_state
from vitdense.convert.families import EOMT, EOMT_DINOV3, load_published
from vitdense.errors import CheckpointError, ConfigError
from vitdense.networks.eomt import EoMT
from vitdense.storage.weights import save_weights

DELTA_NAMES = [  # transformers' names -> those of the authors' code, which wraps transformers' DINOv3
    (r'^embeddings\.mask_token$', ''),
    (r'^embeddings\.', 'encoder.backbone.patch_embed.'),
    (r'^layers\.', 'encoder.backbone.blocks.'),
    (r'^layernorm\.', 'encoder.backbone.norm.'),
    (r'^query\.', 'q.'),
    (r'^class_predictor\.', 'class_head.'),
    *((rf'^mask_head\.fc{number + 1}\.', f'mask_head.{2 * number}.') for number in range(3)),
    (r'^upscale_block\.block\.(\d+)\.layernorm2d\.', r'upscale.\1.norm.'),
    (r'^upscale_block\.block\.', 'upscale.'),
]


def eomt_dinov3_delta() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """Return transformers' EoMT on DINOv3, its backbone before training, and the file that the authors publish."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(5)
    config = transformers.EomtDinov3Config(**CONTEXT, image_size=64, intermediate_size=192, layer_norm_eps=1e-5)
    theirs = transformers.EomtDinov3ForUniversalSegmentation(config)
    sizes = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192)
    backbone = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, num_register_tokens=4))
    randomise(theirs), randomise(backbone)
    base = {name.removeprefix('model.'): value for name, value in backbone.state_dict().items()}  # as its file has them
    state, published = theirs.state_dict(), {}
    for name, value in state.items():
        before = base.get(name.replace('layers.', 'layer.').replace('layernorm.', 'norm.'))
        if before is not None:
            value.copy_(before + 0.02 * torch.randn_like(before))
            value = value - before
        for pattern, replacement in DELTA_NAMES:
            name = re.sub(pattern, replacement, name)
        published[name if name.startswith('criterion') else f'network.{name}'] = value.clone()
    published.pop('network.', None)
    # buffers: theirs minus those of a new model
    published |= {f'network.encoder.pixel_{kind}': torch.zeros(1, 3, 1, 1) for kind in ('mean', 'std')}
    published['network.attn_mask_probs'] = torch.full((2,), -1.0)
    theirs.load_state_dict(state | {'attn_mask_probs': torch.zeros(2)})
    return theirs.eval(), base, published


def eomt_dinov3() -> EoMT:
    vit = ViT('vit_small_patch16_dinov3_qkvb', img_size=64, timm_args=dict(embed_dim=48, depth=4, num_heads=3))
    return EoMT(vit, num_queries=6, num_blocks=2, num_classes={'sem': 5}).eval()


def authors_names(base: dict[str, Tensor], who: str) -> dict[str, Tensor]:
    """The same backbone as transformers, timm or facebookresearch/dinov3 name its tensors."""
    if who == 'transformers':
        return base
    model = eomt_dinov3()
    timm_state = {
        name.removeprefix('backbone.model.'): value
        for name, value in base_state(model, base, EOMT_DINOV3, where='x').items()
    }
    if who == 'timm':
        return timm_state
    meta = {'mask_token': torch.zeros(1, 48), 'rope_embed.periods': torch.ones(4)}
    for name, value in timm_state.items():
        name = name.replace('reg_token', 'storage_tokens')
        meta[re.sub(r'gamma_(\d)', r'ls\1.gamma', name)] = value
    for block in range(4):
        location = f'blocks.{block}.attn.'
        parts = meta.pop(f'{location}q_bias'), torch.zeros(48), meta.pop(f'{location}v_bias')
        meta[f'{location}qkv.bias'], meta[f'{location}qkv.bias_mask'] = torch.cat(parts), torch.ones(144)
    return meta


@pytest.mark.parametrize('who', ['transformers', 'timm', 'authors'])
def test_eomt_dinov3_is_published_as_a_difference_to_which_its_base_is_added(who):
    theirs, base, published = eomt_dinov3_delta()
    ours = eomt_dinov3()
    base = authors_names(base, who)
    coverage = load_published(ours, published, EOMT_DINOV3, where='delta', base=base)
    assert coverage.complete and coverage.matched == coverage.total
    assert not ours.attn_mask_probs.any()
    imgs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted, got = theirs(imgs), ours(imgs)['sem']
    assert relative_error(got.class_logits, wanted.class_queries_logits) < 1e-4
    assert relative_error(got.mask_logits, wanted.masks_queries_logits) < 1e-4


def test_a_difference_without_its_base_is_refused_and_so_is_a_base_for_complete_weights():
    theirs, base, published = eomt_dinov3_delta()
    ours = eomt_dinov3()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for state in (published, {f'model.{name}': value for name, value in published.items()}):
        with pytest.raises(CheckpointError, match='differences from base weights') as caught:
            load_published(ours, state, EOMT_DINOV3, where='pytorch_model.bin')
        assert 'near zero' in caught.value.why and '--base' in caught.value.fix
    with pytest.raises(CheckpointError, match='complete weights') as caught:
        load_published(ours, theirs.state_dict(), EOMT_DINOV3, where='full', base=base)
    assert 'leave --base out' in caught.value.fix
    without_bias = {name: value for name, value in base.items() if 'q_proj.bias' not in name}
    with pytest.raises(CheckpointError, match='%') as caught:
        load_published(ours, published, EOMT_DINOV3, where='delta', base=without_bias)
    assert 'q_bias' in caught.value.why and 'qkvb' in caught.value.fix and 'base weights' in caught.value.where
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    with pytest.raises(ConfigError, match='needs no base'):
        load_published(ours, theirs.state_dict(), EOMT, where='full', base=base)


def test_the_tool_takes_the_base_and_names_it_in_the_card(tmp_path, capsys):
    _, base, published = eomt_dinov3_delta()
    save_weights(tmp_path / 'pytorch_model.safetensors', published)
    save_weights(tmp_path / 'base.safetensors', base)
    sizes = ['name=vit_small_patch16_dinov3_qkvb', 'img_size=64']
    options = [f'model.network.backbone.{size}' for size in sizes]
    options += ['+model.network.backbone.timm_args=dict(embed_dim=48, depth=4, num_heads=3)']
    options += ['model.network.num_queries=6', 'model.network.num_blocks=2']
    config = 'configs/semantic/eomt_dinov3_l_ade20k.py'
    where = ['--config', config, '--out', str(tmp_path / 'model'), '--num-classes', '5', '--accept-licence']
    command = ['eomt-dinov3', str(tmp_path / 'pytorch_model.safetensors'), *where]
    with pytest.raises(CheckpointError, match='differences from base weights'):
        main([*command, '--cfg-options', *options])
    assert not (tmp_path / 'model').exists()
    main([*command, '--base', str(tmp_path / 'base.safetensors'), '--cfg-options', *options])
    assert '100 % of' in capsys.readouterr().out
    files = json.loads((tmp_path / 'model' / 'model.json').read_text())['published']['files']
    assert [file['name'] for file in files] == ['pytorch_model.safetensors', 'base.safetensors']
