"""Published checkpoints load completely: names and shapes as their authors' code makes them."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vitdense.adapters.plain import BackboneMaps
from vitdense.adapters.vit_adapter import ViTAdapter
from vitdense.backbones.vit import ViT
from vitdense.config.load import load_config
from vitdense.convert.families import VIT_ADAPTER, load_published, rename
from vitdense.convert.import_weights import import_weights
from vitdense.errors import CheckpointError
from vitdense.heads.upernet import UPerNetHead
from vitdense.inference.predictor import load
from vitdense.networks.shared import SharedNetwork
from vitdense.registry import build
from vitdense.storage.weights import save_weights

CLASSES = 150
CONFIGS = Path(__file__).parents[2] / 'configs'
VARIANTS = {  # timm's name, width, depth, side of the table; heads and ratio of the adapter; parameters in millions
    'tiny': ('deit_tiny_patch16_224', 192, 12, 14, 6, 1.0, 36),
    'small': ('deit_small_patch16_224', 384, 12, 14, 6, 1.0, 58),
    'base': ('vit_base_patch16_384', 768, 12, 24, 12, 0.5, 134),
    'large': ('vit_large_patch16_384', 1024, 24, 24, 16, 0.5, 364),
}


def norm(name: str, width: int, *, running: bool = False) -> dict[str, tuple]:
    shapes = {f'{name}.weight': (width,), f'{name}.bias': (width,)}
    if running:
        shapes |= {f'{name}.running_mean': (width,), f'{name}.running_var': (width,), f'{name}.num_batches_tracked': ()}
    return shapes


def layer(name: str, *shape: int) -> dict[str, tuple]:
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def deformable(name: str, width: int, heads: int, levels: int, ratio: float) -> dict[str, tuple]:
    value = int(width * ratio)
    return (
        layer(f'{name}.sampling_offsets', heads * levels * 4 * 2, width)
        | layer(f'{name}.attention_weights', heads * levels * 4, width)
        | layer(f'{name}.value_proj', value, width)
        | layer(f'{name}.output_proj', width, value)
    )


def extractor(name: str, width: int, heads: int, ratio: float) -> dict[str, tuple]:
    ffn_dim = width // 4
    shapes = norm(f'{name}.query_norm', width) | norm(f'{name}.feat_norm', width) | norm(f'{name}.ffn_norm', width)
    shapes |= deformable(f'{name}.attn', width, heads, 1, ratio)
    shapes |= layer(f'{name}.ffn.fc1', ffn_dim, width) | layer(f'{name}.ffn.fc2', width, ffn_dim)
    return shapes | layer(f'{name}.ffn.dwconv.dwconv', ffn_dim, 1, 3, 3)


def published_vit(width: int, depth: int, side: int) -> dict[str, tuple]:
    shapes = {'backbone.pos_embed': (1, 1 + side * side, width)} | layer('backbone.patch_embed.proj', width, 3, 16, 16)
    for number in range(depth):
        name = f'backbone.blocks.{number}'
        shapes |= norm(f'{name}.norm1', width) | norm(f'{name}.norm2', width)
        shapes |= layer(f'{name}.attn.qkv', 3 * width, width) | layer(f'{name}.attn.proj', width, width)
        shapes |= layer(f'{name}.mlp.fc1', 4 * width, width) | layer(f'{name}.mlp.fc2', width, 4 * width)
        shapes |= {f'{name}.gamma1': (width,), f'{name}.gamma2': (width,)}  # `layer_scale=True` of base/vit.py
    return shapes


def published_adapter(width: int, heads: int, ratio: float) -> dict[str, tuple]:
    shapes = {'backbone.level_embed': (3, width)}
    for conv, before, after in ((0, 3, 64), (3, 64, 64), (6, 64, 64)):
        shapes |= {f'backbone.spm.stem.{conv}.weight': (after, before, 3, 3)}
        shapes |= norm(f'backbone.spm.stem.{conv + 1}', after, running=True)
    for number, before, after in ((2, 64, 128), (3, 128, 256), (4, 256, 256)):
        shapes |= {f'backbone.spm.conv{number}.0.weight': (after, before, 3, 3)}
        shapes |= norm(f'backbone.spm.conv{number}.1', after, running=True)
    for number, before in enumerate((64, 128, 256, 256), start=1):
        shapes |= layer(f'backbone.spm.fc{number}', width, before, 1, 1)
        shapes |= norm(f'backbone.norm{number}', width, running=True)
    for number in range(4):
        name = f'backbone.interactions.{number}'
        shapes |= norm(f'{name}.injector.query_norm', width) | norm(f'{name}.injector.feat_norm', width)
        shapes |= deformable(f'{name}.injector.attn', width, heads, 3, ratio) | {f'{name}.injector.gamma': (width,)}
        shapes |= extractor(f'{name}.extractor', width, heads, ratio)
    for number in range(2):
        shapes |= extractor(f'backbone.interactions.3.extra_extractors.{number}', width, heads, ratio)
    return shapes | layer('backbone.up', width, width, 2, 2)


def conv_module(name: str, before: int, after: int, kernel: int) -> dict[str, tuple]:
    return {f'{name}.conv.weight': (after, before, kernel, kernel)} | norm(f'{name}.bn', after, running=True)


def published_heads(width: int) -> dict[str, tuple]:
    """mmsegmentation's UPerHead with 512 channels and FCNHead with 256."""
    shapes = layer('decode_head.conv_seg', CLASSES, 512, 1, 1) | layer('auxiliary_head.conv_seg', CLASSES, 256, 1, 1)
    shapes |= conv_module('auxiliary_head.convs.0', width, 256, 3)
    for number in range(4):
        shapes |= conv_module(f'decode_head.psp_modules.{number}.1', width, 512, 1)
    shapes |= conv_module('decode_head.bottleneck', width + 4 * 512, 512, 3)
    for number in range(3):
        shapes |= conv_module(f'decode_head.lateral_convs.{number}', width, 512, 1)
        shapes |= conv_module(f'decode_head.fpn_convs.{number}', 512, 512, 3)
    return shapes | conv_module('decode_head.fpn_bottleneck', 4 * 512, 512, 3)


def published_shapes(variant: str) -> dict[str, tuple]:
    _, width, depth, side, heads, ratio, _ = VARIANTS[variant]
    return published_vit(width, depth, side) | published_adapter(width, heads, ratio) | published_heads(width)


def network_of(variant: str) -> SharedNetwork:
    name, _, _, _, heads, ratio, _ = VARIANTS[variant]
    vit = ViT(name, img_size=512, timm_args=dict(class_token=False, final_norm=False, init_values=1.0))
    branch = dict(adapter=dict(type=BackboneMaps), head=dict(type=UPerNetHead))
    return SharedNetwork(
        ViTAdapter(vit, num_heads=heads, deform_ratio=ratio), {'sem': branch}, num_classes=dict(sem=CLASSES)
    )


@pytest.fixture(scope='module')
def state() -> dict[str, torch.Tensor]:
    """A published ViT-Adapter-T with random numbers."""
    shapes = published_shapes('tiny')
    return {name: torch.tensor(7) if name.endswith('tracked') else torch.rand(shapes[name]) for name in shapes}


@pytest.fixture(scope='module')
def network() -> SharedNetwork:
    return network_of('tiny').eval()


def test_a_published_tiny_loads_completely_and_predicts(state, network):
    coverage = load_published(network, state, VIT_ADAPTER, where='upernet_deit_adapter_tiny.pth')
    assert coverage.complete and coverage.matched == coverage.total
    ours = network.state_dict()
    pairs = {
        'backbone.interactions.3.extra_extractors.1.ffn.dwconv.dwconv.bias': 'pyramid.extractors.3.2.ffn.dwconv.bias',
        'backbone.interactions.2.extractor.attn.value_proj.bias': 'pyramid.extractors.2.0.attn.value_proj.bias',
        'backbone.interactions.1.injector.gamma': 'injectors.1.gamma',
        'backbone.spm.stem.7.running_mean': 'pyramid.prior.stem.2.norm.running_mean',
        'backbone.spm.conv4.0.weight': 'pyramid.prior.stages.2.conv.weight',
        'backbone.spm.fc1.bias': 'pyramid.prior.project.0.bias',
        'backbone.norm3.weight': 'pyramid.norms.2.weight',
        'backbone.level_embed': 'pyramid.level_embed',
        'backbone.blocks.11.mlp.fc2.weight': 'vit.model.blocks.11.mlp.fc2.weight',
        'backbone.blocks.5.gamma1': 'vit.model.blocks.5.ls1.gamma',
        'backbone.blocks.11.gamma2': 'vit.model.blocks.11.ls2.gamma',
    }
    assert all(torch.equal(state[theirs], ours[f'backbone.{mine}']) for theirs, mine in pairs.items())
    heads = {
        'decode_head.fpn_convs.2.bn.running_var': 'smooths.2.norm.running_var',
        'decode_head.lateral_convs.0.conv.weight': 'laterals.0.conv.weight',
        'decode_head.psp_modules.3.1.conv.weight': 'pooling.projections.3.conv.weight',
        'auxiliary_head.conv_seg.bias': 'aux.2.bias',
    }
    assert all(torch.equal(state[theirs], ours[f'heads.sem.{mine}']) for theirs, mine in heads.items())
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 96))['sem'].logits.shape == (1, CLASSES, 16, 24)


def test_windows_of_512_get_the_positions_of_the_published_model(state, network):
    load_published(network, state, VIT_ADAPTER, where='tiny')
    table = state['backbone.pos_embed'][:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    wanted = functional.interpolate(table, size=(32, 32), mode='bicubic', align_corners=False)
    blank = torch.zeros(1, 3, 512, 512)
    vit = network.backbone.vit
    with torch.no_grad():
        got = vit.fold(vit.embed(blank)) - state['backbone.patch_embed.proj.bias'][None, :, None, None]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize('variant', ['small', 'base', 'large'])
def test_larger_ones_have_the_same_names_shapes_and_size_as_published(variant):
    with torch.device('meta'):
        network = network_of(variant)
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    theirs = {rename(name, VIT_ADAPTER.rules): shape for name, shape in published_shapes(variant).items()}
    theirs['backbone.vit.model.pos_embed'] = (1, 32 * 32, theirs['backbone.vit.model.pos_embed'][2])
    assert ours == theirs


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_synthesised_ones_are_as_large_as_the_published(variant):
    """#Param of the tables in the repository of ViT-Adapter, rounded to millions."""
    trained = {name: shape for name, shape in published_shapes(variant).items() if 'running' not in name}
    assert round(sum(math.prod(shape) for shape in trained.values()) / 1e6) == VARIANTS[variant][-1]


def test_a_leftover_or_missing_tensor_is_an_error_that_names_it(state, network):
    for change in ({'backbone.mystery': torch.rand(3)}, {'backbone.up.bias': torch.rand(5)}):
        with pytest.raises(CheckpointError) as caught:
            load_published(network, state | change, VIT_ADAPTER, where='tiny')
        assert ('mystery' if 'backbone.mystery' in change else 'pyramid.up.bias') in caught.value.why


@pytest.mark.parametrize('scaled', [True, False])
def test_the_config_imports_checkpoints_with_layer_scale_and_those_from_before_it(state, scaled, tmp_path):
    """The authors' ViT has LayerScale since 2022-06-19; checkpoints of before are the same model without it."""
    kept = {name: value for name, value in state.items() if scaled or '.gamma1' not in name and '.gamma2' not in name}
    save_weights(tmp_path / 'tiny.safetensors', kept)
    cfg = load_config('configs/semantic/upernet_vitadapter_deit_t_ade20k.py')
    coverage = import_weights('vit-adapter', [tmp_path / 'tiny.safetensors'], cfg, tmp_path / 'model')
    assert coverage.complete and coverage.matched == coverage.total
    names = load(tmp_path / 'model', device='cpu', amp='off').model.network.backbone.vit.state_dict()
    assert ('model.blocks.3.ls1.gamma' in names) == scaled


@pytest.mark.parametrize(
    'config',
    [
        *sorted(CONFIGS.glob('*/*_vitadapter_*ade20k*.py')),
        *sorted(CONFIGS.glob('*/*_vitadapter_*coco*')),
    ],
    ids=lambda path: path.stem,
)
def test_every_vit_adapter_of_a_recipe_trains_layer_scale_that_begins_at_one(config):
    cfg = load_config(config)
    vit = dict(cfg['model']['network']['backbone']['vit'])
    assert vit['timm_args'] == dict(class_token=False, init_values=1.0) and vit['partial_weights'] == ('ls1', 'ls2')
    with torch.device('meta'):
        model = build({**vit, 'pretrained': False})
    assert {name.split('.')[-1] for name, _ in model.named_parameters() if '.ls' in name} == {'gamma'}


def test_layer_scale_that_a_file_does_not_have_begins_at_one(tmp_path):
    plain = ViT('deit_tiny_patch16_224', timm_args=dict(depth=2))
    save_weights(tmp_path / 'deit.safetensors', {name: value for name, value in plain.model.state_dict().items()})
    vit = ViT(
        'deit_tiny_patch16_224',
        pretrained=str(tmp_path / 'deit.safetensors'),
        partial_weights=('ls1', 'ls2'),
        timm_args=dict(depth=2, class_token=False, init_values=1.0),
    )
    assert all(bool((block.ls1.gamma == 1).all() and (block.ls2.gamma == 1).all()) for block in vit.model.blocks)
    assert torch.equal(vit.model.blocks[1].mlp.fc1.weight, plain.model.blocks[1].mlp.fc1.weight)
